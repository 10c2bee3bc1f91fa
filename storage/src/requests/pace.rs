//! The arithmetic of requests: how long to wait, how many at once, when a second copy pays. Pure.

use std::time::Duration;

/// Answers after which the concurrency is judged anew, at least.
const WINDOW: u32 = 16;
/// More than this share of refusals in a window: the store has too much to do. A store that does C requests
/// at once refuses 1 - C/n of n: so n settles within a third of C, and stray refusals change nothing.
const REFUSED: f64 = 0.25;
/// What an overloaded store leaves of the concurrency.
const CUT: f64 = 0.7;
/// The concurrency never falls below this.
const FLOOR: f64 = 2.0;

/// How many requests may be under way: fewer when the store refuses many, more again when it does not.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    most: f64,
    limit: f64,
    answers: u32,
    refused: u32,
}

impl Pace {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        Self { most, limit: most, answers: 0, refused: 0 }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Takes note of an answer.
    pub(super) fn note(&mut self, refused: bool) {
        self.answers += 1;
        self.refused += u32::from(refused);
        if self.answers < WINDOW.max(self.limit as u32) {
            return;
        }
        let share = f64::from(self.refused) / f64::from(self.answers);
        let next = if share > REFUSED { self.limit * CUT } else { self.limit * 1.1 + 1.0 };
        self.limit = next.clamp(FLOOR.min(self.most), self.most);
        (self.answers, self.refused) = (0, 0);
    }
}

/// How long a request took lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Latency {
    recent: Vec<Duration>,
    next: usize,
}

impl Latency {
    /// Requests that count as lately.
    const RECENT: usize = 256;
    /// Fewer say nothing of a tail.
    const ENOUGH: usize = 20;

    pub(super) fn record(&mut self, took: Duration) {
        if self.recent.len() < Self::RECENT {
            self.recent.push(took);
        } else {
            self.recent[self.next] = took;
            self.next = (self.next + 1) % Self::RECENT;
        }
    }

    /// The time that all but a twentieth of them kept within; `None` while too few are known.
    pub(super) fn p95(&self) -> Option<Duration> {
        if self.recent.len() < Self::ENOUGH {
            return None;
        }
        let mut sorted = self.recent.clone();
        let at = sorted.len() * 95 / 100;
        Some(*sorted.select_nth_unstable(at).1)
    }
}

/// Second copies that may still be sent: a share of all requests.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    share: f64,
    left: f64,
}

impl Allowance {
    /// Saved up at most.
    const MOST: f64 = 16.0;

    /// Some are there from the start.
    pub(super) fn new(share: f64) -> Self {
        Self { share, left: if share > 0.0 { 4.0 } else { 0.0 } }
    }

    pub(super) fn earn(&mut self) {
        self.left = (self.left + self.share).min(Self::MOST);
    }

    pub(super) fn spend(&mut self) -> bool {
        let can = self.left >= 1.0;
        if can {
            self.left -= 1.0;
        }
        can
    }
}

/// The wait before a request is sent again for the `retry`th time, 0 the first: doubled every time up to
/// `most`, then drawn from its upper half, so that those who failed together do not come back together.
/// `chance` lies in 0..1.
pub(super) fn backoff(first: Duration, most: Duration, retry: u32, chance: f64) -> Duration {
    let full = first.saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX)).min(most);
    full.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stray_refusals_change_nothing_and_many_lower_the_limit() {
        let mut pace = Pace::new(64);
        for i in 0..2000 {
            pace.note(i % 7 == 0);
        }
        assert_eq!(pace.limit(), 64, "one in seven");
        // A store that does 10 at once: whatever is more is refused.
        let mut told = Vec::new();
        for i in 0..4000 {
            let limit = pace.limit();
            pace.note(i % limit >= 10);
            told.push(limit);
        }
        assert!(told[2000..].iter().all(|n| (5..=20).contains(n)), "{:?}", &told[2000..]);
        for _ in 0..4000 {
            pace.note(true);
        }
        assert_eq!(pace.limit(), 2, "never none");
        for _ in 0..2000 {
            pace.note(false);
        }
        assert_eq!(pace.limit(), 64, "it recovers");
        let mut one = Pace::new(1);
        (0..100).for_each(|_| one.note(true));
        assert_eq!(one.limit(), 1);
    }

    #[test]
    fn the_tail_is_that_of_the_last_requests() {
        let mut latency = Latency::default();
        for ms in 0..19 {
            latency.record(Duration::from_millis(ms));
        }
        assert_eq!(latency.p95(), None, "too few");
        for ms in 0..1000 {
            latency.record(Duration::from_millis(ms));
        }
        let p95 = latency.p95().unwrap().as_millis();
        assert!((980..995).contains(&p95), "{p95} of 744..1000");
    }

    #[test]
    fn copies_are_a_small_share() {
        let mut allowance = Allowance::new(0.1);
        let sent = (0..1000)
            .filter(|_| {
                allowance.earn();
                allowance.spend()
            })
            .count();
        assert!((100..=104).contains(&sent), "{sent}");
        assert!(!Allowance::new(0.0).spend());
    }

    #[test]
    fn waits_double_up_to_the_most() {
        let wait = |retry, chance| backoff(Duration::from_millis(50), Duration::from_secs(5), retry, chance);
        assert_eq!(wait(0, 1.0), Duration::from_millis(50));
        assert_eq!(wait(3, 0.0), Duration::from_millis(200));
        assert_eq!(wait(3, 1.0), Duration::from_millis(400));
        assert_eq!(wait(60, 1.0), Duration::from_secs(5));
    }
}
