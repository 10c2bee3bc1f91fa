//! What goes wrong in a group, by what the caller does next. Each message completes "failed to ...".

use tch::TchError;

/// Collective error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A peer died, hung, came too late, or this rank aborted the group. Abort and drop the group
    /// and its reducer, and join a new one.
    #[error("{doing}: a peer is gone or late ({why})")]
    Peer { doing: String, why: String },
    /// The key-value store does not work. The group is lost as with [`Error::Peer`]; look at the
    /// coordinator.
    #[error("{doing}: the group's key-value store failed ({why})")]
    Store { doing: String, why: String },
    /// This host or this build has no CUDA or NCCL. Change one of them, or the device.
    #[error("{doing}: {why}")]
    Cuda { doing: String, why: String },
    /// A mistake in what was asked: shapes, devices, layouts. Trying again does not help.
    #[error("{doing}: {why}")]
    Other { doing: String, why: String },
}

/// Collective result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What Gloo, NCCL and c10d say (in lower case) when it is a peer's doing. They throw plain
/// `runtime_error`s, so that the text is all there is.
const OF_PEERS: [&str; 12] = [
    "closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "connectfullmesh",
    "socket closed",
    "not connected",
    "aborted",
    "remote process",
    "nccl error",
];

impl Error {
    /// True where the group is lost through no mistake of the caller ([`Error::Peer`] and
    /// [`Error::Store`]): a new group may go on.
    pub fn is_peer(&self) -> bool {
        matches!(self, Error::Peer { .. } | Error::Store { .. })
    }

    /// An error of libtorch: from `backward` it may well be a peer's.
    pub fn of_torch(doing: impl Into<String>, e: TchError) -> Self {
        Self::classify(doing.into(), &e.to_string())
    }

    pub(crate) fn of_shim(doing: impl Into<String>, e: cxx::Exception) -> Self {
        Self::classify(doing.into(), e.what())
    }

    pub(crate) fn other(doing: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Other { doing: doing.into(), why: why.into() }
    }

    /// `what` may begin with the tags of `cpp/shim.h`.
    fn classify(doing: String, what: &str) -> Self {
        let (tag, rest) = match what.split_once(": ") {
            Some((tag @ ("store" | "peer"), rest)) => (tag, rest),
            _ => ("", what),
        };
        let why = first_line(rest);
        let lower = why.to_lowercase();
        if tag == "peer" || OF_PEERS.iter().any(|p| lower.contains(p)) {
            Error::Peer { doing, why }
        } else if tag == "store" {
            Error::Store { doing, why }
        } else {
            Error::Other { doing, why }
        }
    }
}

/// The line that people need: without the stack that libtorch appends, the source line that Gloo
/// puts in front and its advice behind.
fn first_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("no reason was given");
    let line = match line.split_once("] ") {
        Some((at, rest)) if at.starts_with("[/") => rest,
        _ => line,
    };
    line.split(". This is typically caused by").next().unwrap_or(line).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_what_the_caller_does() {
        let of = |what: &str| Error::classify("all-reduce".into(), what);
        let gone = of(
            "[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1\nException raised from",
        );
        assert!(matches!(&gone, Error::Peer { .. }) && gone.is_peer());
        assert_eq!(
            gone.to_string(),
            "all-reduce: a peer is gone or late (Connection closed by peer [127.0.0.1]:1)"
        );
        assert!(matches!(of("peer: NCCL communicator was lost"), Error::Peer { .. }));
        assert!(matches!(of("store: wait: timed out after 2s waiting for rank 1"), Error::Peer { .. }));
        assert!(matches!(of("store: set: the coordinator hung up"), Error::Store { .. }));
        assert!(
            matches!(of("Invalid scalar type"), Error::Other { .. }) && !of("Invalid scalar type").is_peer()
        );
    }
}
