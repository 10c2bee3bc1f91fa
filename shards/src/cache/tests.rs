//! The cache on a real disk, in one process and several handles; `tests/cache.rs` kills processes.

use super::core::HEADER;
use super::*;
use std::collections::BTreeMap;

const DIGEST: &str = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
const OTHER: &str = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7";

/// A run's bytes follow from its number.
fn run(n: u64, bytes: usize) -> (Wanted, Bytes) {
    let body: Vec<u8> = (0..bytes as u64).map(|i| (n * 131 + i * 7 + i / 251) as u8).collect();
    let key = RunKey { file: (n % 3) as u32, offset: n * 1_000_000 };
    (Wanted { key, bytes: bytes as u64, crc32c: crc32c(&body) }, body.into())
}

fn put(cache: &Cache, numbers: impl IntoIterator<Item = u64>, bytes: usize) {
    for n in numbers {
        let (wanted, body) = run(n, bytes);
        cache.offer(wanted.key, body);
        cache.flush();
    }
}

/// The numbers that the cache has; what it has is right.
fn held(cache: &Cache, numbers: impl IntoIterator<Item = u64>, bytes: usize) -> Vec<u64> {
    let runs: Vec<u64> = numbers.into_iter().collect();
    let wanted = runs.iter().map(|&n| run(n, bytes).0).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let found = runtime.block_on(cache.get(wanted));
    let mut held = Vec::new();
    for (n, found) in runs.into_iter().zip(found) {
        if let Some(found) = found {
            assert_eq!(found, run(n, bytes).1);
            held.push(n);
        }
    }
    held
}

/// Bytes of the folder's files, as the disk counts them and as their lengths say: the larger.
fn used(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().metadata().unwrap());
    files.map(|m| (m.blocks() * 512).max(m.len())).sum()
}

#[test]
fn what_is_offered_is_found_by_everyone_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let a = Cache::open(folder.path(), 1 << 20, DIGEST).unwrap();
    let b = Cache::open(folder.path(), 1 << 20, DIGEST).unwrap();
    put(&a, 0..10, 5000);
    put(&b, 10..20, 5000);
    assert_eq!(held(&b, 0..25, 5000), (0..20).collect::<Vec<_>>());
    assert_eq!(held(&a, 0..25, 5000), (0..20).collect::<Vec<_>>());
    let stats = a.stats();
    assert_eq!((stats.hits, stats.misses, stats.hit_bytes), (20, 5, 100_000));
    assert_eq!((stats.written_bytes, stats.evicted, stats.bypassed, stats.damaged), (50_000, 0, 0, 0));
    assert_eq!(stats.to_string(), "80.0 % of 25 runs found (97.7 KiB), 48.8 KiB written");
    put(&b, 0..10, 5000);
    assert_eq!(b.stats().written_bytes, 50_000, "what is here is not written again");
    drop((a, b));
    let again = Cache::open(folder.path(), 1 << 20, DIGEST).unwrap();
    assert_eq!(held(&again, 0..25, 5000), (0..20).collect::<Vec<_>>());
    let other = Cache::open(folder.path(), 1 << 20, OTHER).unwrap();
    assert!(held(&other, 0..25, 5000).is_empty(), "another dataset's are not mixed up with these");
}

#[test]
fn the_limit_holds_and_a_small_cache_lets_large_runs_pass() {
    for limit in [0, 5000, 20_000, 100_000, 1_000_000] {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), limit, DIGEST).unwrap();
        for n in 0..300 {
            put(&cache, [n], 1000 + (n as usize * 977) % 40_000);
            assert!(used(folder.path()) <= limit.max(HEADER), "{limit}: {}", used(folder.path()));
        }
        let stats = cache.stats();
        assert!(stats.bypassed > 0, "{limit}: {stats:?}");
        assert_eq!(stats.written_bytes > 0, limit >= 20_000, "{limit}: {stats:?}");
    }
}

#[test]
fn another_limit_cuts_the_folder_anew_or_is_refused_while_it_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let first = Cache::open(folder.path(), 10 << 20, DIGEST).unwrap();
    put(&first, 0..200, 50_000);
    let smaller = Cache::open(folder.path(), 5 << 20, DIGEST).unwrap_err().to_string();
    assert!(smaller.contains("data.cache.limit") && smaller.contains("10485760"), "{smaller}");
    let larger = Cache::open(folder.path(), 20 << 20, DIGEST).unwrap();
    assert_eq!(larger.shared.folder.geometry.limit, 10 << 20, "the limit in force stays");
    drop((first, larger));
    assert!(used(folder.path()) > 5 << 20);
    let smaller = Cache::open(folder.path(), 5 << 20, DIGEST).unwrap();
    assert!(used(folder.path()) <= 5 << 20);
    put(&smaller, 0..200, 50_000);
    assert!(used(folder.path()) <= 5 << 20);
}

#[test]
fn a_slot_being_read_is_not_emptied_and_one_emptied_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    // 12 slots of 8 KiB with a run each.
    let cache = Cache::open(folder.path(), 13 * 8192, DIGEST).unwrap();
    let slots = cache.shared.folder.geometry.slots as u64;
    put(&cache, 0..slots, 4000);
    assert_eq!(held(&cache, 0..slots, 4000).len() as u64, slots);
    let places = cache.shared.find(&[run(3, 4000).0]);
    let place = places[0].unwrap();
    let pinned = cache.shared.folder.pin(place.slot, place.generation).unwrap().unwrap();
    // Another process with another dataset makes itself room, but not there.
    let other = Cache::open(folder.path(), 13 * 8192, OTHER).unwrap();
    put(&other, 1000..1000 + 20 * slots, 4000);
    assert!(other.stats().evicted > 0, "{:?}", other.stats());
    let mut bytes = vec![0; 4000];
    pinned.read_exact_at(&mut bytes, place.at).unwrap();
    assert_eq!(bytes, run(3, 4000).1);
    drop(pinned);
    let left = held(&cache, 0..slots, 4000);
    assert!(left.contains(&3) && (left.len() as u64) < slots, "{left:?}");
    let gone = (0..slots as u32).filter(|&slot| cache.shared.folder.pin(slot, 1).unwrap().is_none()).count();
    assert_eq!(gone, slots as usize - left.len(), "a place of an earlier life is not read");
}

#[test]
fn damage_on_the_disk_is_a_miss_and_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 1 << 20, DIGEST).unwrap();
    put(&cache, 0..3, 3000);
    let slot = folder.path().join("slot-00000");
    let mut bytes = std::fs::read(&slot).unwrap();
    let at = cache.shared.find(&[run(1, 3000).0])[0].unwrap().at as usize;
    bytes[at + 100] ^= 1;
    std::fs::write(&slot, &bytes).unwrap();
    assert_eq!(held(&cache, 0..3, 3000), [0, 2]);
    assert_eq!(cache.stats().damaged, 1);
    put(&cache, [1], 3000);
    assert_eq!(held(&cache, 0..3, 3000), [0, 1, 2]);
    drop(cache);
    // Records and table spoilt in every place: never a wrong run, never more than the limit.
    let files: BTreeMap<PathBuf, Vec<u8>> = ["table", "slot-00000"]
        .iter()
        .map(|name| folder.path().join(name))
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    for (path, bytes) in &files {
        for at in (0..bytes.len().min(4096 + 80)).step_by(3) {
            for (path, bytes) in &files {
                std::fs::write(path, bytes).unwrap();
            }
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 0xff;
            std::fs::write(path, spoilt).unwrap();
            let cache = Cache::open(folder.path(), 1 << 20, DIGEST).unwrap();
            held(&cache, 0..3, 3000);
            put(&cache, 3..6, 3000);
            assert_eq!(held(&cache, 3..6, 3000), [3, 4, 5], "{} byte {at}", path.display());
            drop(cache);
            assert!(used(folder.path()) <= 1 << 20);
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_and_a_disk_that_fills_up_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let e = Cache::open(&file.join("cache"), 1 << 20, DIGEST).unwrap_err().to_string();
    assert!(e.contains("file/cache"), "{e}");
    let cache = Cache::open(folder.path(), 1 << 20, DIGEST).unwrap();
    put(&cache, 0..3, 3000);
    // A folder in the slot's place: the next one cannot be made, as on a full disk.
    let slots = cache.shared.folder.geometry.slots;
    for slot in 1..slots {
        std::fs::create_dir(folder.path().join(format!("slot-{slot:05}"))).unwrap();
    }
    put(&cache, 3..30, 3000);
    assert!(cache.shared.off.load(Relaxed) && cache.stats().bypassed > 0);
    assert_eq!(held(&cache, 0..3, 3000), [0, 1, 2], "what is there is still read");
}
