//! Configuration errors: every one is the user's to fix, and says where.

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the configuration {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("parse the configuration {name}: {why}")]
    Syntax { name: String, why: String },
    #[error("understand {key} in {name}: {why}")]
    Field { name: String, key: String, why: String },
    #[error("apply --set {text}: {why}")]
    Override { text: String, why: String },
}

/// Configuration result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A serde error with its path; an unknown field is answered with the nearest known one.
    pub(crate) fn field(name: &str, e: serde_path_to_error::Error<toml::de::Error>) -> Self {
        let key = e.path().to_string();
        let why = e.inner().message().to_string();
        let why = match nearest(&why) {
            Some(near) => format!("{why}; did you mean `{near}`?"),
            None => why,
        };
        Error::Field { name: name.into(), key, why }
    }

    pub(crate) fn invalid(name: &str, key: &str, why: impl Into<String>) -> Self {
        Error::Field { name: name.into(), key: key.into(), why: why.into() }
    }
}

/// From serde's "unknown field `x`, expected one of `a`, `b`" the name most like x.
fn nearest(message: &str) -> Option<String> {
    let mut names = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    let (distance, near) =
        names.map(|known| (strsim::damerau_levenshtein(wrong, known), known)).min_by_key(|(d, _)| *d)?;
    (distance <= 3.max(wrong.len() / 2)).then(|| near.to_string())
}
