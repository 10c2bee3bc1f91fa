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
    /// The coordinator has ended this worker's session: the job failed, or this worker was given up.
    #[error("finish the job: {0}")]
    Dismissed(String),
    /// The job ended without success.
    #[error("finish the job: {0}")]
    JobFailed(String),
    /// Another trainer in this one's place would fare no better.
    #[error(transparent)]
    Final(Box<Error>),
    #[error("access {path}: {source}")]
    Io { path: String, source: std::io::Error },
}

/// Worker result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// True where a peer or the generation is gone, and a new generation may go on.
    pub fn is_rejoin(&self) -> bool {
        match self {
            Error::GenerationOver { .. } | Error::Unlike { .. } => true,
            Error::Collective(e) => e.is_peer(),
            Error::Model(models::Error::Lent { peer, .. }) => *peer,
            _ => false,
        }
    }

    /// True where the others may go on: what is wrong is this worker alone, or the way to the coordinator.
    pub fn is_own(&self) -> bool {
        matches!(
            self,
            Error::Misfit(_)
                | Error::SentAway(_)
                | Error::Dismissed(_)
                | Error::Alone { .. }
                | Error::Coordinator { .. }
        )
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
