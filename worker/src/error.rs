//! What stops a worker, by what happens next: rejoin, tell the user, or give up.

use crate::supervise;

/// Worker error. Each message completes "failed to ...".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user must change an argument, a file or a location.
    #[error("{0}")]
    Usage(String),
    /// The coordinator refused this worker; the reason says what to change.
    #[error("join the job: {0}")]
    Rejected(String),
    #[error(transparent)]
    Access(#[from] proto::AccessError),
    #[error(transparent)]
    Config(#[from] configs::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Data(#[from] shards::Error),
    #[error(transparent)]
    Model(#[from] models::Error),
    #[error(transparent)]
    Collective(#[from] collective::Error),
    #[error("compute: {0}")]
    Torch(#[from] tch::TchError),
    /// A checkpoint is damaged or unfinished; the one before may do.
    #[error("use the checkpoint {url}: {why}")]
    Checkpoint { url: String, why: String },
    /// The weights that a job shall begin with belong to another network.
    #[error("begin with the weights of {url}: {source}")]
    Init { url: String, source: models::Error },
    /// The coordinator does not answer or hung up.
    #[error("reach the coordinator at {address}: {why}")]
    Coordinator { address: String, why: String },
    /// No coordinator of the run was heard for too long.
    #[error(
        "go on without a coordinator: none of this run was heard for {seconds:.0} s (cluster.coordinator_grace); start one on the same run ({why})"
    )]
    Alone { seconds: f64, why: String },
    /// The coordinator does not want this process any more, though it did before.
    #[error("stay in the job: {0}")]
    SentAway(String),
    /// A newcomer does not fit those who are training; they go on without it.
    #[error("join those who are training: {0}")]
    Misfit(String),
    /// A state that came over the group is not the one that was sent.
    #[error(
        "take over the state of rank {source_rank} at step {step}: its digest is {got:016x} here and {sent:016x} there"
    )]
    Unlike { source_rank: usize, step: u64, got: u64, sent: u64 },
    /// The coordinator ended this generation.
    #[error("go on in generation {generation}: {reason}")]
    GenerationOver { generation: u64, reason: String },
    /// Loss or gradients were no numbers in too many steps in a row.
    #[error(
        "finish step {step}: {why}, and {skipped} steps in a row had to be skipped; lower the learning rate or look at the clips that the log names, and resume from the last checkpoint"
    )]
    NonFinite { step: u64, skipped: u64, why: String },
    /// An evaluation met infinities.
    #[error(
        "judge clip {place} of the split: the network's output is not a number; training has diverged: lower the learning rate"
    )]
    Output { place: u32 },
    /// An evaluation is not whole; what is finished of it stays.
    #[error("{0}")]
    Evaluation(String),
    /// The coordinator has ended this worker's session: the job failed, or, where another process is welcome in its
    /// place, this worker was given up.
    #[error("finish the job: {reason}")]
    Dismissed { reason: String, again: bool },
    /// The job ended without success.
    #[error("finish the job: {0}")]
    JobFailed(String),
    /// Another trainer in this one's place would fare no better.
    #[error(transparent)]
    Final(Box<Error>),
    /// Another trainer in this one's place may fare better.
    #[error(transparent)]
    Passing(Box<Error>),
    #[error("access {path}: {source}")]
    Io { path: String, source: std::io::Error },
}

/// Worker result.
pub type Result<T> = std::result::Result<T, Error>;

/// What an error costs those who train together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// This generation: a peer or the group is gone. Whoever is left goes on in the next one, with what it has.
    Generation,
    /// This worker: it has lost its disk, its memory, its way to the store or its place. It ends, its supervisor may
    /// start it again, and the others go on.
    Worker,
    /// The job: every worker would meet the same.
    Job,
}

impl Error {
    /// What it costs once this worker trains with others.
    pub fn cost(&self) -> Cost {
        match self {
            Error::GenerationOver { .. } | Error::Unlike { .. } => Cost::Generation,
            Error::Collective(e) if e.is_peer() => Cost::Generation,
            Error::Model(models::Error::Lent { peer: true, .. }) => Cost::Generation,
            Error::Misfit(_) | Error::SentAway(_) | Error::Dismissed { again: true, .. } => Cost::Worker,
            Error::Io { .. } | Error::Passing(_) => Cost::Worker,
            Error::Storage(e) if e.is_passing() => Cost::Worker,
            Error::Data(e) if e.is_passing() => Cost::Worker,
            Error::Torch(_) | Error::Model(_) | Error::Collective(_) if is_of_host(&self.to_string()) => {
                Cost::Worker
            }
            _ => Cost::Job,
        }
    }

    /// The clip that could not be shown, where it is one's fault.
    pub fn clip(&self) -> Option<&str> {
        match self {
            Error::Data(e) => e.clip(),
            Error::Final(e) | Error::Passing(e) => e.clip(),
            _ => None,
        }
    }

    /// As the end of a trainer that had joined: whether another one in its place may fare better.
    pub fn of_trainer(self) -> Self {
        match self.cost() {
            // Those who are training know another job: only a person can settle that.
            _ if matches!(self, Error::Misfit(_)) => self,
            Cost::Generation | Cost::Worker => Error::Passing(Box::new(self)),
            Cost::Job => Error::Final(Box::new(self)),
        }
    }

    /// 2 where the user must change something, else 1; a trainer's final failures have their own.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Final(e) if e.exit_code() != 2 => supervise::FINAL,
            Error::Final(_) => 2,
            Error::Usage(_) | Error::Rejected(_) | Error::Access(_) | Error::Config(_) | Error::Misfit(_) => {
                2
            }
            Error::Storage(e) if e.is_usage() => 2,
            Error::Data(e) if e.is_usage() => 2,
            Error::Model(source) | Error::Init { source, .. } if source.is_usage() => 2,
            _ => 1,
        }
    }
}

/// What libtorch, Gloo and NCCL say when this host or device has run out of something, or is broken.
fn is_of_host(text: &str) -> bool {
    const WORDS: [&str; 6] = [
        "out of memory",
        "cannot allocate memory",
        "can't allocate memory",
        "too many open files",
        "no space left",
        "uncorrectable ecc",
    ];
    let text = text.to_lowercase();
    WORDS.iter().any(|w| text.contains(w))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::Error as Data;
    use storage::Error as Store;

    fn full() -> std::io::Error {
        std::io::Error::from(std::io::ErrorKind::StorageFull)
    }

    fn unreachable() -> Store {
        Store::Unreachable { url: "s3://b".into(), endpoint: "http://x".into(), why: "refused".into() }
    }

    #[test]
    fn what_is_wrong_on_one_host_costs_that_worker_alone() {
        let unread = Data::Unread { clip: "c".into(), run: 1, source: Box::new(unreachable()) };
        for e in [
            Error::Io { path: "/fast".into(), source: full() },
            Error::Storage(unreachable()),
            Error::Data(unread),
            Error::Data(Data::Io { path: "/cache".into(), source: full() }),
            Error::Torch(tch::TchError::Torch("CUDA out of memory".into())),
            Error::Dismissed { reason: "no beat".into(), again: true },
        ] {
            assert_eq!(e.cost(), Cost::Worker, "{e}");
            // Unreachable is a usage error where a person has just typed the URL, but not here.
            assert_eq!(e.of_trainer().exit_code(), 1);
        }
    }

    #[test]
    fn what_everybody_would_meet_costs_the_job() {
        let damaged = Data::DamagedClip { file: "f".into(), clip: "c".into(), run: 1, why: "CRC".into() };
        for (e, code) in [
            (Error::Usage("resume".into()), 2),
            (Error::Data(damaged), supervise::FINAL),
            (Error::Data(Data::NotADataset { url: "d".into() }), 2),
            (Error::Storage(Store::NotFound { url: "d".into() }), 2),
            (Error::Torch(tch::TchError::Torch("shapes differ".into())), supervise::FINAL),
            (Error::Dismissed { reason: "the job failed".into(), again: false }, supervise::FINAL),
        ] {
            assert_eq!(e.cost(), Cost::Job, "{e}");
            assert_eq!(e.of_trainer().exit_code(), code);
        }
        let misfit = Error::Misfit("another list".into());
        assert_eq!((misfit.cost(), misfit.of_trainer().exit_code()), (Cost::Worker, 2));
    }
}
