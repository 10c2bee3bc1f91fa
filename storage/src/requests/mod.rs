//! How reads are asked for: deadlines, retries, a limit that heeds a store's refusals, and a second copy of
//! a request that takes unusually long.
//!
//! For reads only, which may be repeated freely. A commit keeps its own rule: there a lost answer means "look".
//!
//! ```text
//! limit.rs  as many at once as the pace allows
//! pace.rs   the arithmetic: pure
//! tests.rs  the whole of it under virtual time
//! ```

mod limit;
mod pace;

use crate::{Error, Result};
use futures::stream::{FuturesUnordered, StreamExt};
use limit::Limiter;
use pace::{Allowance, Latency, backoff};
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// How reads are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestPolicy {
    /// Requests under way at most.
    pub at_once: usize,
    /// Time for a connection.
    pub connect: Duration,
    /// Time until the answer begins, the connection included.
    pub first_byte: Duration,
    /// Time until the answer is complete.
    pub whole: Duration,
    /// Times that a request is sent again after it failed.
    pub retries: u32,
    /// The first wait before it is sent again, and the longest.
    pub backoff: [Duration; 2],
    /// A request that takes this many times what all but a twentieth take is sent a second time, and the first
    /// answer counts. Half as many times while less than half of `at_once` is under way: then others wait for this
    /// one, and a second copy takes nothing from them.
    pub hedge_after: f64,
    /// Second copies sent at most, as a share of all requests; 0: none.
    pub hedge_share: f64,
}

impl Default for RequestPolicy {
    fn default() -> Self {
        Self {
            at_once: 64,
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(10),
            whole: Duration::from_secs(60),
            retries: 8,
            backoff: [Duration::from_millis(25), Duration::from_secs(5)],
            hedge_after: 3.0,
            hedge_share: 0.1,
        }
    }
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestStats {
    /// Requests sent, all copies and retries included.
    pub sent: u64,
    /// Sent again because they failed.
    pub retries: u64,
    /// Refused because the store had too much to do.
    pub throttled: u64,
    /// Beyond a deadline.
    pub timeouts: u64,
    /// Second copies sent for a slow answer.
    pub hedges: u64,
    /// Second copies that answered first.
    pub hedges_won: u64,
    /// Requests that may be under way now.
    pub limit: u64,
}

/// Why one copy of a request failed, by what is to be done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Too much to do: ask again later, and all of us less.
    Throttled(Error),
    /// May well succeed the next time.
    Transient(Error),
    /// Beyond a deadline; may well succeed the next time.
    Late(Error),
    /// Would fail again.
    Fatal(Error),
}

/// Copies of one request at once, at most.
const COPIES: usize = 4;
/// How often a request looks whether a second copy is due, while nobody knows what is usual.
const LOOK: Duration = Duration::from_millis(100);

/// Sends requests by a policy.
#[derive(Debug)]
pub(crate) struct Requests {
    policy: RequestPolicy,
    limiter: Arc<Limiter>,
    latency: Mutex<Latency>,
    allowance: Mutex<Allowance>,
    /// Spreads the waits; another in every process.
    chance: RandomState,
    sent: AtomicU64,
    retries: AtomicU64,
    throttled: AtomicU64,
    timeouts: AtomicU64,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
}

impl Requests {
    pub(crate) fn new(policy: RequestPolicy) -> Self {
        Self {
            policy,
            limiter: Limiter::new(policy.at_once),
            latency: Mutex::default(),
            allowance: Mutex::new(Allowance::new(policy.hedge_share)),
            chance: RandomState::new(),
            sent: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            hedges_won: AtomicU64::new(0),
        }
    }

    pub(crate) fn stats(&self) -> RequestStats {
        RequestStats {
            sent: self.sent.load(Relaxed),
            retries: self.retries.load(Relaxed),
            throttled: self.throttled.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            hedges: self.hedges.load(Relaxed),
            hedges_won: self.hedges_won.load(Relaxed),
            limit: self.limiter.limit() as u64,
        }
    }

    /// What `attempt` gives, which is called once for every copy and retry.
    pub(crate) async fn run<T, F>(&self, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Failure>>,
    {
        let [first, most] = self.policy.backoff;
        for retry in 0.. {
            // Given back before the wait: a request that waits is not under way.
            let under_way = self.limiter.acquire(retry > 0).await;
            if retry == 0 {
                lock(&self.allowance).earn();
            }
            let failure = match self.race(&attempt).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            drop(under_way);
            let error = match failure {
                Failure::Throttled(e) | Failure::Transient(e) | Failure::Late(e) => e,
                Failure::Fatal(e) => return Err(e),
            };
            if retry >= self.policy.retries {
                return Err(error);
            }
            let number = self.retries.fetch_add(1, Relaxed);
            let chance = self.chance.hash_one(number) as f64 / u64::MAX as f64;
            tracing::debug!(retry, "{error}; asking again");
            sleep(backoff(first, most, retry, chance)).await;
        }
        unreachable!("the loop ends by returning")
    }

    /// The first good answer of one or more copies, or the last failure.
    async fn race<T, F>(&self, attempt: &impl Fn() -> F) -> std::result::Result<T, Failure>
    where
        F: Future<Output = std::result::Result<T, Failure>>,
    {
        let mut copies = FuturesUnordered::new();
        copies.push(self.once(attempt(), 0));
        let mut last = Instant::now();
        let mut sent = 1;
        loop {
            let usual = lock(&self.latency).p95();
            let patience = self.policy.hedge_after * if self.limiter.has_room() { 0.5 } else { 1.0 };
            let due = usual.map(|p95| last + p95.mul_f64(patience));
            // Looked at anew now and then: what is usual changes, and so do room and allowance.
            let look =
                due.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).clamp(LOOK / 20, LOOK));
            let look = Instant::now() + look;
            tokio::select! {
                biased;
                Some((number, result)) = copies.next() => match result {
                    Ok(answer) => {
                        self.hedges_won.fetch_add(u64::from(number > 0), Relaxed);
                        return Ok(answer);
                    }
                    Err(failure) if copies.is_empty() || matches!(failure, Failure::Fatal(_)) => return Err(failure),
                    Err(_) => {}
                },
                () = sleep_until(look), if sent < COPIES && self.policy.hedge_share > 0.0 => {
                    if due.is_some_and(|due| due <= Instant::now()) && lock(&self.allowance).spend() {
                        self.hedges.fetch_add(1, Relaxed);
                        last = Instant::now();
                        copies.push(self.once(attempt(), sent));
                        sent += 1;
                    }
                }
            }
        }
    }

    /// One copy, counted.
    async fn once<T>(
        &self,
        attempt: impl Future<Output = std::result::Result<T, Failure>>,
        number: usize,
    ) -> (usize, std::result::Result<T, Failure>) {
        self.sent.fetch_add(1, Relaxed);
        let began = Instant::now();
        let result = attempt.await;
        match &result {
            Ok(_) => lock(&self.latency).record(began.elapsed()),
            Err(Failure::Throttled(_)) => _ = self.throttled.fetch_add(1, Relaxed),
            Err(Failure::Late(_)) => _ = self.timeouts.fetch_add(1, Relaxed),
            Err(_) => {}
        }
        self.limiter.note(matches!(result, Err(Failure::Throttled(_))));
        (number, result)
    }

    /// `head`, then what `body` makes of it, each within its time.
    pub(crate) async fn in_time<H, T, B>(
        &self,
        url: &str,
        head: impl Future<Output = std::result::Result<H, Failure>>,
        body: impl FnOnce(H) -> B,
    ) -> std::result::Result<T, Failure>
    where
        B: Future<Output = std::result::Result<T, Failure>>,
    {
        let began = Instant::now();
        let late = |what, limit| Failure::Late(Error::Late { url: url.into(), what, limit });
        let RequestPolicy { first_byte, whole, .. } = self.policy;
        let first_byte = first_byte.min(whole);
        let head = timeout_at(began + first_byte, head);
        let head = head.await.map_err(|_| late("begun", first_byte))??;
        timeout_at(began + whole, body(head)).await.map_err(|_| late("complete", whole))?
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
