//! The policy against a store made of timers, under virtual time.

use super::*;
use futures::future::join_all;
use std::cell::Cell;

const MS: Duration = Duration::from_millis(1);

fn failed() -> Error {
    Error::NotFound { url: "a".into() }
}

/// Times how long `count` requests take, of which the nth copy sent gets what `answer(n)` says:
/// after how long, and whether it is refused.
async fn time(requests: &Requests, count: usize, answer: impl Fn(u64) -> (Duration, bool)) -> Duration {
    let (sent, began) = (Cell::new(0), Instant::now());
    let one = |_| {
        requests.run(|| {
            sent.set(sent.get() + 1);
            let (wait, refused) = answer(sent.get());
            async move {
                sleep(wait).await;
                if refused { Err(Failure::Throttled(failed())) } else { Ok(()) }
            }
        })
    };
    for result in join_all((0..count).map(one)).await {
        result.unwrap();
    }
    began.elapsed()
}

/// A number in 0..1000 that looks like chance.
fn draw(n: u64) -> u64 {
    let x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) % 1000
}

#[tokio::test(start_paused = true)]
async fn refusals_and_stalls_cost_little() {
    let policy = RequestPolicy::default();
    let clean = time(&Requests::new(policy), 12_000, |n| (20 * MS + MS * (n % 10) as u32, false)).await;
    let requests = Requests::new(policy);
    let refused = time(&requests, 12_000, |n| (20 * MS + MS * (n % 10) as u32, draw(n) < 150)).await;
    assert!(refused < clean.mul_f64(1.3), "15 % refused: {refused:?}, clean {clean:?}");
    let stats = requests.stats();
    assert_eq!(stats.sent, 12_000 + stats.retries);
    assert_eq!(stats.throttled, stats.retries);
    assert_eq!((stats.limit, stats.hedges), (64, 0));

    let requests = Requests::new(policy);
    let stall = |n| if draw(n) < 40 { Duration::from_secs(45) } else { 20 * MS + MS * (n % 10) as u32 };
    let stalled = time(&requests, 12_000, |n| (stall(n), false)).await;
    assert!(
        stalled < clean.mul_f64(1.3),
        "4 % stalled: {stalled:?}, clean {clean:?}, {:?}",
        requests.stats()
    );
    let stats = requests.stats();
    assert!(stats.hedges_won > 320 && stats.hedges <= 1200, "{stats:?}");

    let without = RequestPolicy { hedge_share: 0.0, ..policy };
    let stalled = time(&Requests::new(without), 12_000, |n| (stall(n), false)).await;
    assert!(stalled > 10 * clean, "what second copies spare: {stalled:?}");
}

#[tokio::test(start_paused = true)]
async fn a_second_copy_comes_sooner_where_there_is_room() {
    let requests = Requests::new(RequestPolicy::default());
    time(&requests, 640, |_| (100 * MS, false)).await;
    // One alone, stalled: half of three times 100 ms, and 100 ms for the second copy.
    let alone = time(&requests, 1, |n| (if n == 1 { 1000 * 100 * MS } else { 100 * MS }, false)).await;
    assert!((250 * MS..300 * MS).contains(&alone), "{alone:?}");
    // The same beside as many as may be under way.
    let requests = Requests::new(RequestPolicy::default());
    let busy =
        time(&requests, 64 * 40, |n| (if n == 1000 { 1000 * 100 * MS } else { 100 * MS }, false)).await;
    assert!(busy < 42 * 100 * MS, "{busy:?}");
    assert_eq!(requests.stats().hedges, 1);
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_store_is_asked_less_and_then_more_again() {
    // It does eight at a time and refuses the rest, then recovers.
    let requests = Requests::new(RequestPolicy { retries: 1000, ..Default::default() });
    let (at_once, most) = (Cell::new(0u32), Cell::new(8u32));
    let peak = Cell::new(0u32);
    let one = |_| {
        requests.run(|| {
            at_once.set(at_once.get() + 1);
            peak.set(peak.get().max(at_once.get()));
            let refused = at_once.get() > most.get();
            let at_once = &at_once;
            async move {
                sleep(if refused { MS } else { 20 * MS }).await;
                at_once.set(at_once.get() - 1);
                if refused { Err(Failure::Throttled(failed())) } else { Ok(()) }
            }
        })
    };
    join_all((0..2000).map(one)).await.into_iter().for_each(|r| r.unwrap());
    let stats = requests.stats();
    assert!(stats.limit <= 24, "{stats:?}");
    peak.set(0);
    most.set(1000);
    join_all((0..3000).map(one)).await.into_iter().for_each(|r| r.unwrap());
    assert_eq!(requests.stats().limit, 64);
    assert!(peak.get() <= 64 + 16, "{} at once", peak.get());
}

#[tokio::test(start_paused = true)]
async fn retries_end_and_what_would_fail_again_is_not_repeated() {
    let requests = Requests::new(RequestPolicy { retries: 3, ..Default::default() });
    let began = Instant::now();
    let answer = requests.run(|| async { Err::<(), _>(Failure::Transient(failed())) }).await;
    assert!(answer.unwrap_err().is_not_found());
    assert_eq!((requests.stats().sent, requests.stats().retries), (4, 3));
    let waited = began.elapsed();
    assert!((87 * MS..=175 * MS).contains(&waited), "25, 50 and 100 ms, or half of each: {waited:?}");
    let answer = requests.run(|| async { Err::<(), _>(Failure::Fatal(failed())) }).await;
    assert!(answer.is_err() && requests.stats().sent == 5);
}

#[tokio::test(start_paused = true)]
async fn late_answers_are_asked_for_again_and_then_an_error_that_says_so() {
    let requests = Requests::new(RequestPolicy { retries: 1, hedge_share: 0.0, ..Default::default() });
    let (head, body) = (Duration::from_secs(11), Duration::from_secs(52));
    for (head, body, said) in [(head, MS, "begun after 10s"), (9000 * MS, body, "complete after 60s")] {
        let sent = requests.stats();
        let attempt = || {
            let wait = |time| async move {
                sleep(time).await;
                Ok(())
            };
            requests.in_time("s3://b/k", wait(head), move |()| wait(body))
        };
        let text = requests.run(attempt).await.unwrap_err().to_string();
        assert!(text.contains("s3://b/k") && text.contains(said), "{text}");
        assert_eq!(requests.stats().timeouts - sent.timeouts, 2);
    }
}
