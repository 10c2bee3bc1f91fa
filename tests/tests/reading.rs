//! Reading a dataset from a folder, from S3 and from S3 on a bad day: the same bytes, the same refusals.

#![allow(clippy::unwrap_used)]

use futures::future::try_join_all;
use shards::{
    Error,
    format::{ClipIndex, Dataset, crc32c},
    reader::{Reader, Stats},
};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use storage::{Location, RequestPolicy};
use tests::{
    marey,
    proxy::{Fault, Proxy, Rule},
};
use xtask::{motion, s3::Server};

const DATA: &str = "k/data/*";

/// A dataset of clips of four runs on a server, and the same objects in a folder.
struct Bench {
    folder: tempfile::TempDir,
    server: Server,
    proxy: Proxy,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(&folder.path().join("s3"), "marey").unwrap();
        let videos = folder.path().join("videos");
        let spec = motion::Spec { train: 24, val: 0, size: 48, frames: 50, seed: 1 };
        motion::write_set(&videos, &spec).expect("the sample videos are set up: run `make setup`");
        let labels = videos.join("labels.csv");
        let args =
            ["ingest", text(&videos), "--labels", text(&labels), "--out", "s3://marey/k", "--no-progress"];
        let mut ingest: Command = marey(&args);
        let said = ingest.envs(server.env()).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let proxy = Proxy::start(&server.endpoint(), 3, vec![]).unwrap();
        Self { folder, server, proxy }
    }

    fn direct(&self) -> Location {
        Location::parse_with("s3://marey/k", &self.server.env()).unwrap()
    }

    fn proxied(&self) -> Location {
        let mut env = self.server.env();
        env.iter_mut().filter(|v| v.0 == "AWS_ENDPOINT_URL").for_each(|v| v.1 = self.proxy.endpoint());
        Location::parse_with("s3://marey/k", &env).unwrap()
    }

    /// The objects as they are now, copied into a folder.
    async fn local(&self, name: &str) -> Location {
        let (from, to) = (self.direct(), Location::parse(text(&self.folder.path().join(name))).unwrap());
        for object in from.list("").await.unwrap() {
            to.put(&object.key, from.get(&object.key).await.unwrap()).await.unwrap();
        }
        to
    }

    /// The data file of the first clip.
    async fn first_file(&self) -> String {
        let dataset = Dataset::open(&self.direct()).await.unwrap();
        dataset.manifest.files[dataset.clip(ClipIndex(0)).file as usize].key.clone()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn patient() -> RequestPolicy {
    // No second copies: they would make the order of requests, and so their fate, depend on the time.
    RequestPolicy {
        hedge_share: 0.0,
        backoff: [Duration::from_millis(1), Duration::from_millis(20)],
        ..Default::default()
    }
}

async fn reader(location: &Location, policy: RequestPolicy) -> Reader {
    Reader::new(Arc::new(Dataset::open(location).await.unwrap()), policy).unwrap()
}

/// A checksum of every run of these frames of every clip, and what the reading took.
async fn read(reader: &Reader, frames: &[u32]) -> shards::Result<(Vec<u32>, Stats)> {
    let clips = reader.dataset().manifest.totals.clips as u32;
    let one = |clip| async move {
        let runs = reader.fetch(ClipIndex(clip), frames).await?;
        Ok((0..4).map(|run| runs.get(run).map_or(0, |bytes| crc32c(bytes))).collect::<Vec<u32>>())
    };
    let found = try_join_all((0..clips).map(one)).await;
    found.map(|all: Vec<Vec<u32>>| (all.concat(), reader.stats()))
}

const ALL: [u32; 4] = [0, 16, 32, 48];
/// The second run, and the last two.
const WINDOWS: [&[u32]; 2] = [&[17, 19, 30], &[33, 49]];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_backend_gives_the_same_and_the_faults_of_the_way_do_not_show() {
    let bench = Bench::new();
    let direct = reader(&bench.direct(), patient()).await;
    let expected = read(&direct, &ALL).await.unwrap().0;
    assert!(expected.iter().filter(|&&crc| crc != 0).count() == expected.len());
    let local = bench.local("copy").await;
    for location in [&local, &bench.direct(), &bench.proxied()] {
        let whole = reader(location, patient()).await;
        assert_eq!(whole.dataset().digest, direct.dataset().digest);
        let (found, stats) = read(&whole, &ALL).await.unwrap();
        assert_eq!(found, expected, "{}", location.url());
        assert_eq!((stats.bytes, stats.requests), (stats.needed, 24), "neighbouring runs come together");
        for window in WINDOWS {
            let part = reader(location, patient()).await;
            let (found, in_part) = read(&part, window).await.unwrap();
            let shown = found.iter().zip(&expected).filter(|(crc, _)| **crc != 0);
            assert!(shown.clone().count() > 0 && shown.clone().all(|(a, b)| a == b));
            assert!(in_part.amplification() <= 1.05 && in_part.needed < stats.needed * 2 / 3, "{in_part:?}");
        }
    }

    let fault = |share, fault| Rule::gets(DATA, share, fault);
    let rules = [
        fault(1.0, Fault::Delay(Duration::from_millis(2))),
        fault(0.15, Fault::answer(503)),
        fault(0.05, Fault::answer(500)),
        fault(0.05, Fault::Reset),
        fault(0.05, Fault::Lose),
        fault(0.05, Fault::Cut),
    ];
    let bad_day = reader(&bench.proxied(), patient()).await;
    bench.proxy.take_counts();
    for round in 0..8 {
        // A wrong answer is asked for again once: two for the same run would be damage.
        let wrong = [Fault::Shorten, Fault::Flip][round % 2].clone();
        bench.proxy.set_rules([&rules[..], &[fault(0.2, wrong).at_most(1)]].concat());
        assert_eq!(read(&bad_day, &ALL).await.unwrap().0, expected);
    }
    let (counts, stats) = (bench.proxy.counts(), bad_day.stats());
    for name in ["answer", "reset", "lose", "cut", "shorten", "flip"] {
        assert!(counts.faults[name] > 0, "{counts:?}");
    }
    // A connection that closes before the answer is tried again below us, unseen.
    assert!(
        counts.requests >= stats.requests && stats.throttled > 0 && stats.refetches > 0,
        "{stats:?} {counts:?}"
    );
    assert!(stats.to_string().contains("refused by a busy store"), "{stats}");
}

/// The error of reading the first clip, which must name it, and its words.
async fn refusal(location: &Location, policy: RequestPolicy) -> (Error, String) {
    let reader = reader(location, policy).await;
    let error = reader.fetch(ClipIndex(0), &ALL).await.map(|_| ()).unwrap_err();
    let text = error.to_string();
    let clip = &reader.dataset().clip(ClipIndex(0)).clip_id;
    assert!(text.contains(&format!("clip {clip:?}, run ")), "{text}");
    assert!(text.contains("k/data/") || text.contains("copy"), "{text}");
    (error, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_an_object_is_told_alike_everywhere() {
    let bench = Bench::new();
    let (key, direct) = (bench.first_file().await, bench.direct());
    let good = direct.get(&key).await.unwrap();
    let local = bench.local("copy").await;
    let dataset = Dataset::open(&direct).await.unwrap();
    let (offset, runs) =
        (dataset.clip(ClipIndex(0)).offset as usize, dataset.clip(ClipIndex(0)).run_offsets[2] as usize);
    let mut flipped = good.to_vec();
    flipped[offset + runs + 9] ^= 1;
    for (location, on_s3) in [(&local, false), (&bench.direct(), true), (&bench.proxied(), true)] {
        location.put(&key, flipped.clone()).await.unwrap();
        let (error, text) = refusal(location, patient()).await;
        assert!(error.is_damage() && text.contains("run 2") && text.contains("its CRC32C is"), "{text}");
        assert!(text.contains("marey verify"), "{text}");
        assert_eq!(text.contains("the object was replaced: its ETag is"), on_s3, "{text}");

        location.put(&key, good.slice(..offset + runs + 9)).await.unwrap();
        let (error, text) = refusal(location, patient()).await;
        let words = if on_s3 { "the object was replaced" } else { "the file is cut off" };
        assert!(error.is_damage() && text.contains(words), "{text}");
        assert!(text.contains(&good.len().to_string()), "{text}");

        location.delete(&key).await.unwrap();
        let (error, text) = refusal(location, patient()).await;
        assert!(error.is_damage() && text.contains("missing"), "{text}");

        location.put(&key, good.clone()).await.unwrap();
        assert!(read(&reader(location, patient()).await, &ALL).await.is_ok(), "whole again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_the_store_is_mended_once_and_else_named() {
    let bench = Bench::new();
    let location = bench.proxied();
    let few = RequestPolicy { retries: 2, first_byte: Duration::from_millis(500), ..patient() };
    let cases = [
        (Fault::answer(503), "SlowDown", false),
        (Fault::answer(500), "InternalError", false),
        (Fault::Cut, "", false),
        (Fault::Reset, "AWS_ENDPOINT_URL", false),
        (Fault::Lose, "AWS_ENDPOINT_URL", false),
        (Fault::Shorten, "bytes came, not", true),
        (Fault::Flip, "its CRC32C is", true),
        (Fault::Stall(Duration::from_secs(60)), "not begun after 500ms", false),
    ];
    for (fault, words, damage) in cases {
        bench.proxy.set_rules(vec![Rule::gets(DATA, 1.0, fault.clone()).at_most(1)]);
        let once = reader(&location, few).await;
        once.fetch(ClipIndex(0), &ALL).await.unwrap_or_else(|e| panic!("{fault} once: {e}"));
        bench.proxy.set_rules(vec![Rule::gets(DATA, 1.0, fault.clone())]);
        let (error, text) = refusal(&location, few).await;
        assert!(error.is_damage() == damage && text.contains(words), "{fault}: {text}");
    }
    // What would fail again is not asked for again.
    for (fault, words) in [
        (Fault::answer(403), "access denied"),
        (Fault::answer(301), "set AWS_REGION"),
        (Fault::answer(400), "set AWS_REGION"),
        (Fault::answer(404), "missing"),
    ] {
        bench.proxy.set_rules(vec![Rule::gets(DATA, 1.0, fault.clone())]);
        bench.proxy.take_counts();
        let (_, text) = refusal(&location, few).await;
        assert!(text.contains(words), "{fault}: {text}");
        assert_eq!(bench.proxy.counts().faults["answer"], 1, "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_with_other_etags_is_read_and_a_stalled_request_is_overtaken() {
    let bench = Bench::new();
    let location = bench.proxied();
    // As if the files had been copied in other parts: the ETags differ, the bytes do not.
    let manifest = location.get("dataset.json").await.unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        assert!(file["etag"].is_string(), "an ingest to S3 notes the ETags: {file}");
        file["etag"] = "\"00000000000000000000000000000000-2\"".into();
    }
    location.put("dataset.json", serde_json::to_vec(&manifest).unwrap()).await.unwrap();
    let copied = reader(&location, patient()).await;
    read(&copied, &ALL).await.unwrap();
    assert_eq!(copied.stats().refetches, 0);

    // 64 requests that answer, so that it is known what is usual, then one that would not for an hour.
    let hedging = RequestPolicy {
        first_byte: Duration::from_secs(3600),
        whole: Duration::from_secs(3600),
        ..Default::default()
    };
    let reader = reader(&location, hedging).await;
    for _ in 0..3 {
        read(&reader, &ALL).await.unwrap();
    }
    bench.proxy.set_rules(vec![Rule::gets(DATA, 1.0, Fault::Stall(Duration::from_secs(3600))).at_most(1)]);
    let before = reader.stats().hedges_won;
    reader.fetch(ClipIndex(0), &ALL).await.unwrap();
    assert_eq!(reader.stats().hedges_won, before + 1);
}

/// Hands out the server's credentials as a container's host does, and counts how often it was asked.
fn credentials_host(bench: &Bench, life: Duration) -> (String, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/credentials", listener.local_addr().unwrap());
    let value = |name: &str| bench.server.env().into_iter().find(|v| v.0 == name).unwrap().1;
    let (key, secret) = (value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"));
    let counter = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            counter.fetch_add(1, Relaxed);
            let until = humantime::format_rfc3339_seconds(
                std::fs::metadata("/proc/self").unwrap().modified().unwrap() + life,
            );
            let body = serde_json::json!({
                "AccessKeyId": key, "SecretAccessKey": secret, "Token": "", "Expiration": until.to_string(),
            });
            let body = body.to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).unwrap();
        }
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_fetched_once_and_anew_before_they_end() {
    let bench = Bench::new();
    let token = bench.folder.path().join("token");
    std::fs::write(&token, "a token").unwrap();
    for (life, most) in [(Duration::from_secs(3600), 1), (Duration::from_secs(60), u64::MAX)] {
        let (url, asked) = credentials_host(&bench, life);
        let own = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let mut env: Vec<_> = bench.server.env().into_iter().filter(|v| !own.contains(&v.0)).collect();
        env.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI", url));
        env.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", text(&token).into()));
        let location = Location::parse_with("s3://marey/k", &env).unwrap();
        let reader = reader(&location, patient()).await;
        for _ in 0..4 {
            read(&reader, &ALL).await.unwrap();
        }
        let asked = asked.load(Relaxed);
        assert!((1..=most).contains(&asked), "{asked} times for {} requests", reader.stats().requests);
        // Those that end within five minutes are fetched again, but not for each of the 96 objects.
        assert!(asked < 48, "{asked} times");
    }
}

/// Not a test: prints what faults cost. Run it with `--run-ignored only --no-capture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_what_faults_cost() {
    let bench = Bench::new();
    let delay = || Rule::gets(DATA, 1.0, Fault::Delay(Duration::from_millis(20)));
    let rules = [
        ("20 ms latency", vec![delay()]),
        ("and 15 % 503", vec![delay(), Rule::gets(DATA, 0.15, Fault::answer(503))]),
        (
            "and 4 % stalled for 45 s",
            vec![delay(), Rule::gets(DATA, 0.04, Fault::Stall(Duration::from_secs(45)))],
        ),
    ];
    for (name, rules) in rules {
        bench.proxy.set_rules(rules);
        let reader = reader(&bench.proxied(), RequestPolicy::default()).await;
        let began = tokio::time::Instant::now();
        // 6000 requests, as many at once as the policy lets through.
        try_join_all((0..6000).map(|i| reader.fetch(ClipIndex(i % 24), &ALL))).await.unwrap();
        println!("{name}: {:.2} s, {}", began.elapsed().as_secs_f64(), reader.stats());
    }
}
