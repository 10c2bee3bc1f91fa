//! Each fault of the fault proxy, seen by a plain client of a real S3 server behind it.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};
use tests::proxy::{Fault, Proxy, Rule};

/// One unsigned request on a connection of its own: what came back, and whether it ended in a reset.
fn ask(proxy: &Proxy, method: &str, path: &str) -> (String, bool) {
    let host = proxy.endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(&host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let reset = match stream.read_to_end(&mut answer) {
        Ok(_) => false,
        Err(e) if e.kind() == ErrorKind::ConnectionReset => true,
        Err(e) => panic!("{e}"),
    };
    (String::from_utf8_lossy(&answer).into_owned(), reset)
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[test]
fn every_fault_does_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let server = xtask::s3::Server::start(folder.path(), "marey").unwrap();
    let proxy = Proxy::start(&server.endpoint(), 1, vec![]).unwrap();
    // Unsigned: the server refuses with a body of some hundred bytes, which names the request.
    let plain = ask(&proxy, "GET", "/marey/a").0;
    assert!(plain.starts_with("HTTP/1.1 403") && plain.contains("AccessDenied"), "{plain}");
    let length = body(&plain).len();
    let with = |fault| {
        proxy.set_rules(vec![Rule::gets("a", 1.0, fault)]);
        let said = ask(&proxy, "GET", "/marey/a");
        assert_eq!(ask(&proxy, "GET", "/marey/b").0.len(), plain.len(), "another key is left alone");
        said
    };
    assert_eq!(with(Fault::Reset), (String::new(), true));
    assert_eq!(with(Fault::Lose), (String::new(), false));
    let (cut, _) = with(Fault::Cut);
    assert!(cut.contains(&format!("ength: {length}")), "{cut}");
    assert!(body(&cut).len() < length, "{cut}");
    let (short, _) = with(Fault::Shorten);
    assert!(short.contains(&format!("ength: {}", length / 2)), "{short}");
    assert_eq!(body(&short).len(), length / 2);
    let (flipped, _) = with(Fault::Flip);
    assert_eq!(body(&flipped).len(), length);
    let changed = body(&flipped).bytes().zip(body(&plain).bytes()).filter(|(a, b)| a != b).count();
    assert!(changed >= 1, "{flipped}");
    let (slow, _) = with(Fault::answer(503));
    assert!(slow.starts_with("HTTP/1.1 503") && slow.contains("<Code>SlowDown</Code>"), "{slow}");
    for wait in [Fault::Delay, Fault::Stall, Fault::StallBody] {
        let (late, _) = with(wait(Duration::from_millis(20)));
        assert_eq!(body(&late).len(), length, "late but whole");
    }
    let counts = proxy.take_counts();
    for name in ["reset", "lose", "cut", "shorten", "flip", "answer", "delay", "stall", "stall-body"] {
        assert_eq!(counts.faults[name], 1, "{counts:?}");
    }
    assert_eq!(counts.requests, 1 + 2 * 9);
    assert_eq!(counts.methods["GET"], counts.requests);
    assert!(counts.bytes > 0 && proxy.counts().requests == 0);
}
