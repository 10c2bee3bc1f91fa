//! What a signal asks of a trainer: SIGTERM to be let go, SIGUSR1 a checkpoint.

use crate::{Error, Result};
use proto::v1::{self, worker_message::Kind};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
};

type Say = Box<dyn Fn(Kind) + Send>;

/// Caught from the trainer's first moment on.
#[derive(Clone, Default)]
pub(super) struct Signals {
    /// Raised by SIGUSR1.
    pub(super) checkpoint: Arc<AtomicBool>,
    /// Where Leaving goes, once there is a session.
    say: Arc<Mutex<Option<Say>>>,
}

impl Signals {
    /// Before there is a session SIGTERM ends the process well, for nobody counts on it yet. A second SIGTERM ends
    /// it at any time, as if it had not been caught.
    pub(super) fn catch(runtime: &Handle) -> Result<Self> {
        let _in_runtime = runtime.enter();
        let caught = |kind, name: &str| {
            signal(kind).map_err(|source| Error::Io { path: format!("the signal {name}"), source })
        };
        let mut terminate = caught(SignalKind::terminate(), "SIGTERM")?;
        let mut user = caught(SignalKind::user_defined1(), "SIGUSR1")?;
        let signals = Self::default();
        let (ours, mut asked) = (signals.clone(), false);
        runtime.spawn(async move {
            loop {
                tokio::select! {
                    () = heard(&mut terminate) => {
                        if asked {
                            collective::exit_now(143);
                        }
                        asked = true;
                        ours.leave();
                    }
                    () = heard(&mut user) => ours.checkpoint.store(true, Ordering::Relaxed),
                }
            }
        });
        Ok(signals)
    }

    /// From now on SIGTERM asks the coordinator to let this worker go.
    pub(super) fn ask_by(&self, say: impl Fn(Kind) + Send + 'static) {
        *self.say.lock().unwrap_or_else(|e| e.into_inner()) = Some(Box::new(say));
    }

    fn leave(&self) {
        match &*self.say.lock().unwrap_or_else(|e| e.into_inner()) {
            Some(say) => {
                tracing::info!("told to stop (SIGTERM): asking the coordinator to let this worker go");
                say(Kind::Leaving(v1::Leaving { reason: "it was told to stop (SIGTERM)".into() }));
            }
            None => collective::exit_now(0),
        }
    }
}

/// The runtime that delivers signals outlives whoever waits for them.
async fn heard(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}
