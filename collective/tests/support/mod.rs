//! What the tests share: ranks as threads, ranks as processes of this very program, and a
//! key-value store over TCP so that the processes can meet.
#![allow(dead_code, clippy::unwrap_used)]

use collective::{Backend, Group, KeyValue, MemoryStore, Result, Store};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

pub const LOCAL: Backend = Backend::Gloo { host: "127.0.0.1" };

pub fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

#[allow(clippy::disallowed_methods)]
pub fn now() -> Instant {
    Instant::now()
}

/// Runs `f(group)` as each of `world` ranks, threads of this process; their results by rank.
pub fn ranks<T: Send + 'static>(world: usize, f: impl Fn(Group) -> T + Send + Sync + 'static) -> Vec<T> {
    let (keys, f) = (Arc::new(MemoryStore::new()), Arc::new(f));
    let started: Vec<_> = (0..world)
        .map(|rank| {
            let (keys, f) = (keys.clone(), f.clone());
            thread::spawn(move || f(group(keys, "g0/", rank, world, secs(20)).unwrap()))
        })
        .collect();
    started.into_iter().map(|t| t.join().unwrap()).collect()
}

pub fn group(
    keys: Arc<dyn KeyValue>,
    prefix: &str,
    rank: usize,
    world: usize,
    timeout: Duration,
) -> Result<Group> {
    Group::new(&Store::new(keys, timeout)?, prefix, rank, world, LOCAL, timeout)
}

/// Starts `role` of `test` in a process of its own: the same program, told by its environment.
pub fn spawn(test: &str, role: &str, server: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("COLLECTIVE_TEST_ROLE", role)
        .env("COLLECTIVE_TEST_STORE", server)
        .spawn()
        .unwrap()
}

/// In a spawned process, the role and the parent's store; in the test itself, `None`.
pub fn role() -> Option<(String, Arc<Remote>)> {
    let role = std::env::var("COLLECTIVE_TEST_ROLE").ok()?;
    Some((role, Arc::new(Remote(std::env::var("COLLECTIVE_TEST_STORE").unwrap()))))
}

/// Serves a store until the process ends; returns its address.
pub fn serve(keys: Arc<MemoryStore>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let keys = keys.clone();
            // A client that was killed half-way is no concern of the others.
            thread::spawn(move || answer(stream, &keys));
        }
    });
    address
}

/// A [`KeyValue`] that asks the process which called [`serve`]: one connection a call.
pub struct Remote(String);

impl Remote {
    fn call(&self, parts: &[&[u8]]) -> Result<Vec<u8>, String> {
        let io = |e: std::io::Error| format!("the test's store: {e}");
        let mut stream = TcpStream::connect(&self.0).map_err(io)?;
        write_all(&mut stream, parts).map_err(io)?;
        let mut reply = read_all(&mut stream).map_err(io)?;
        match reply.pop() {
            Some(value) if reply.is_empty() => Ok(value),
            Some(why) => Err(String::from_utf8_lossy(&why).into_owned()),
            None => Err("the test's store: empty reply".into()),
        }
    }

    fn number(&self, parts: &[&[u8]]) -> Result<i64, String> {
        self.call(parts).map(|v| i64::from_le_bytes(v.try_into().unwrap()))
    }
}

impl KeyValue for Remote {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.call(&[b"set", key.as_bytes(), value]).map(|_| ())
    }
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        self.call(&[b"get", key.as_bytes(), &millis(timeout)])
    }
    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        self.number(&[b"add", key.as_bytes(), &amount.to_le_bytes()])
    }
    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        self.call(&[b"compare_set", key.as_bytes(), expected, desired])
    }
    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String> {
        keys.iter().try_for_each(|k| self.get(k, timeout).map(|_| ()))
    }
    fn check(&self, keys: &[String]) -> Result<bool, String> {
        let one = |k: &String| self.number(&[b"check", k.as_bytes()]);
        keys.iter().try_fold(true, |all, k| Ok(all && one(k)? != 0))
    }
    fn delete(&self, key: &str) -> Result<bool, String> {
        self.number(&[b"delete", key.as_bytes()]).map(|n| n != 0)
    }
    fn num_keys(&self) -> Result<i64, String> {
        self.number(&[b"num_keys", b""])
    }
}

fn answer(mut stream: TcpStream, keys: &MemoryStore) -> std::io::Result<()> {
    let parts = read_all(&mut stream)?;
    let key = std::str::from_utf8(&parts[1]).unwrap();
    let number = |i: usize| i64::from_le_bytes(parts[i].as_slice().try_into().unwrap());
    let le = |n: i64| n.to_le_bytes().to_vec();
    let reply = match parts[0].as_slice() {
        b"set" => keys.set(key, &parts[2]).map(|()| vec![]),
        b"get" => keys.get(key, Duration::from_millis(number(2) as u64)),
        b"add" => keys.add(key, number(2)).map(le),
        b"compare_set" => keys.compare_set(key, &parts[2], &parts[3]),
        b"check" => keys.check(&[key.to_string()]).map(|b| le(b.into())),
        b"delete" => keys.delete(key).map(|b| le(b.into())),
        b"num_keys" => keys.num_keys().map(le),
        other => Err(format!("unknown request {other:?}")),
    };
    match reply {
        Ok(value) => write_all(&mut stream, &[&value]),
        Err(why) => write_all(&mut stream, &[b"error", why.as_bytes()]),
    }
}

fn millis(d: Duration) -> [u8; 8] {
    (d.as_millis() as i64).to_le_bytes()
}

fn write_all(stream: &mut TcpStream, parts: &[&[u8]]) -> std::io::Result<()> {
    let mut message = (parts.len() as u32).to_le_bytes().to_vec();
    for part in parts {
        message.extend((part.len() as u32).to_le_bytes());
        message.extend(*part);
    }
    stream.write_all(&message)
}

fn read_all(stream: &mut TcpStream) -> std::io::Result<Vec<Vec<u8>>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    (0..u32::from_le_bytes(length))
        .map(|_| {
            stream.read_exact(&mut length)?;
            let mut part = vec![0; u32::from_le_bytes(length) as usize];
            stream.read_exact(&mut part)?;
            Ok(part)
        })
        .collect()
}
