//! The whole way from Rust through c10d's store and back into a Rust [`KeyValue`].
#![allow(clippy::unwrap_used)]

mod support;

use collective::{Error, KeyValue, MemoryStore, Store};
use std::{sync::Arc, thread, time::Duration};
use support::{now, secs};

fn store(timeout: Duration) -> (Arc<MemoryStore>, Store) {
    let keys = Arc::new(MemoryStore::new());
    (keys.clone(), Store::new(keys, timeout).unwrap())
}

#[test]
fn every_operation_reaches_the_key_value_store() {
    let (keys, s) = store(secs(5));
    let all_bytes: Vec<u8> = (0..=255).collect();
    s.set("a", &all_bytes).unwrap();
    assert_eq!(s.get("a").unwrap(), all_bytes);
    assert_eq!(keys.get("a", Duration::ZERO).unwrap(), all_bytes);
    s.set("a", b"").unwrap();
    assert_eq!(s.get("a").unwrap(), b"");

    assert_eq!((s.add("n", 5).unwrap(), s.add("n", -7).unwrap()), (5, -2));
    assert_eq!(s.get("n").unwrap(), b"-2");
    s.set("n", b"x").unwrap();
    assert!(s.add("n", 1).unwrap_err().to_string().contains("no number"));

    assert_eq!(s.compare_set("c", b"other", b"v").unwrap(), b"other");
    assert!(!s.check("c").unwrap());
    assert_eq!(s.compare_set("c", b"", b"v").unwrap(), b"v");
    assert_eq!(s.compare_set("c", b"wrong", b"w").unwrap(), b"v");
    assert_eq!(s.compare_set("c", b"v", b"w").unwrap(), b"w");

    assert_eq!(s.num_keys().unwrap(), 3);
    assert!(s.check("c").unwrap() && s.delete("c").unwrap());
    assert!(!s.check("c").unwrap() && !s.delete("c").unwrap());
    assert_eq!(s.num_keys().unwrap(), 2);
}

#[test]
fn a_wait_ends_when_the_key_comes() {
    let (keys, s) = store(secs(30));
    let setter = thread::spawn(move || keys.set("late", b"v").unwrap());
    s.wait("late", secs(30)).unwrap();
    assert_eq!(s.get("late").unwrap(), b"v");
    setter.join().unwrap();
}

#[test]
fn a_wait_for_nothing_is_a_peer_that_is_late() {
    let (_, s) = store(Duration::from_millis(50));
    let began = now();
    for e in [s.get("never").unwrap_err(), s.wait("never", secs(60)).unwrap_err()] {
        assert!(matches!(e, Error::Peer { .. }) && e.to_string().contains("waiting for never"), "{e}");
    }
    assert!(began.elapsed() < secs(30), "the store's own time-out bounds every wait");
}
