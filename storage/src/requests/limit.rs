//! As many requests at once as the pace allows, which changes while they run.

use super::{lock, pace::Pace};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};
use tokio::sync::oneshot;

/// Lets requests through.
#[derive(Debug)]
pub(super) struct Limiter(Mutex<State>);

#[derive(Debug)]
struct State {
    pace: Pace,
    under_way: usize,
    /// Those that failed before come first: others wait for what they belong to.
    again: VecDeque<oneshot::Sender<UnderWay>>,
    waiting: VecDeque<oneshot::Sender<UnderWay>>,
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Option<Arc<Limiter>>);

impl Limiter {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let (again, waiting) = (VecDeque::new(), VecDeque::new());
        Arc::new(Self(Mutex::new(State { pace: Pace::new(most), under_way: 0, again, waiting })))
    }

    pub(super) fn limit(&self) -> usize {
        lock(&self.0).pace.limit()
    }

    /// True where the store could be asked for more than as much again as is under way.
    pub(super) fn has_room(&self) -> bool {
        let state = lock(&self.0);
        state.waiting.is_empty() && 2 * state.under_way < state.pace.limit()
    }

    /// Waits for a place; `again`: before those who ask for the first time.
    pub(super) async fn acquire(self: &Arc<Self>, again: bool) -> UnderWay {
        let place = {
            let mut state = lock(&self.0);
            let (sender, place) = oneshot::channel();
            let queue = if again { &mut state.again } else { &mut state.waiting };
            queue.push_back(sender);
            self.admit(&mut state);
            place
        };
        // A sender is dropped only with the limiter, which is borrowed here.
        place.await.unwrap_or(UnderWay(None))
    }

    /// Takes note of an answer.
    pub(super) fn note(self: &Arc<Self>, refused: bool) {
        let mut state = lock(&self.0);
        state.pace.note(refused);
        self.admit(&mut state);
    }

    fn admit(self: &Arc<Self>, state: &mut State) {
        while state.under_way < state.pace.limit() {
            let Some(next) = state.again.pop_front().or_else(|| state.waiting.pop_front()) else { return };
            match next.send(UnderWay(Some(self.clone()))) {
                Ok(()) => state.under_way += 1,
                // Nobody waits there any more.
                Err(mut unused) => unused.0 = None,
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(limiter) = self.0.take() {
            let mut state = lock(&limiter.0);
            state.under_way -= 1;
            limiter.admit(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn places_go_to_those_who_still_wait_and_to_the_repeated_first() {
        let limiter = Limiter::new(1);
        let first = limiter.acquire(false).now_or_never().unwrap();
        let (mut second, mut given_up) = (Box::pin(limiter.acquire(false)), Box::pin(limiter.acquire(false)));
        let mut again = Box::pin(limiter.acquire(true));
        assert!((&mut given_up).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        assert!((&mut again).now_or_never().is_none());
        drop(first);
        let again = again.now_or_never().expect("the repeated one first");
        assert!((&mut second).now_or_never().is_none());
        // Its place was granted, but nobody takes it: it is free again.
        drop(given_up);
        drop(again);
        drop(second);
        assert!(limiter.acquire(false).now_or_never().is_some());
    }
}
