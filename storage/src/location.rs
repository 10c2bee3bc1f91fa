//! A prefix in an object store or on disk, and the few operations the house needs.

use crate::{Error, Reads, RequestPolicy, Result};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
    WriteMultipart,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
};
use sha2::{Digest, Sha256};
use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::sleep;

/// Pauses before a put-if-absent that met a conflict, but no object, is tried again.
const CONFLICTS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_millis(3200),
];

/// A prefix in a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Location {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    pub(crate) endpoint: String,
    /// How the store was made; `None`: a local disk.
    pub(crate) s3: Option<Arc<AmazonS3Builder>>,
    /// Nobody else writes here: see [`Location::with_single_writer`].
    single_writer: bool,
}

/// Who won a put-if-absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is ours.
    Created,
    /// Somebody's object was there already; nothing was changed.
    Exists,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Key relative to the location that was asked.
    pub key: String,
    /// Size in bytes.
    pub bytes: u64,
    /// When it was written, in milliseconds since 1970.
    pub unix_ms: i64,
}

impl Location {
    /// Parses a URL or path and makes its client; does no I/O. S3 settings come from the usual
    /// AWS variables (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, ...); a plain-HTTP
    /// endpoint is accepted as given.
    pub fn parse(url: &str) -> Result<Self> {
        Self::parse_with(url, &[])
    }

    /// [`Location::parse`] with AWS variables that overrule the process's own.
    pub fn parse_with(url: &str, variables: &[(&str, String)]) -> Result<Self> {
        let bad = |why: &str| Error::BadUrl { url: url.into(), why: why.into() };
        if url.is_empty() {
            return Err(bad("it is empty"));
        }
        match url.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(bad("it names no bucket"));
                }
                let given = |name: &str| {
                    let own = variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
                    own.or_else(|| std::env::var(name).ok())
                };
                let endpoint =
                    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"].into_iter().find_map(given);
                let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry());
                for (name, value) in variables {
                    let key: AmazonS3ConfigKey = name
                        .to_ascii_lowercase()
                        .parse()
                        .map_err(|_| bad(&format!("{name} is no AWS variable")))?;
                    builder = builder.with_config(key, value);
                }
                if let Some(e) = &endpoint {
                    builder = builder.with_endpoint(e).with_allow_http(e.starts_with("http://"));
                }
                let store = builder.clone().build().map_err(|e| bad(&e.to_string()))?;
                // Whatever client is made of this later shares the credentials, and so their refreshing.
                let builder = builder.with_credentials(store.credentials().clone());
                Ok(Self {
                    store: Arc::new(store),
                    prefix: Path::parse(key.trim_matches('/')).map_err(|e| bad(&e.to_string()))?,
                    url: url.trim_end_matches('/').into(),
                    endpoint: endpoint.unwrap_or_else(|| "the AWS default".into()),
                    s3: Some(Arc::new(builder)),
                    single_writer: false,
                })
            }
            Some(("file", path)) => Self::local(url, path),
            Some((scheme, _)) => Err(bad(&format!("the scheme {scheme} is not known"))),
            None => Self::local(url, url),
        }
    }

    fn local(url: &str, path: &str) -> Result<Self> {
        let io = |source| Error::Io { path: path.into(), source };
        let absolute = std::path::absolute(path).map_err(io)?;
        let prefix = Path::from_absolute_path(&absolute)
            .map_err(|e| Error::BadUrl { url: url.into(), why: e.to_string() })?;
        Ok(Self {
            store: Arc::new(LocalFileSystem::new()),
            prefix,
            url: absolute.display().to_string(),
            endpoint: String::new(),
            s3: None,
            single_writer: false,
        })
    }

    /// The location below this one.
    pub fn join(&self, relative: &str) -> Self {
        Self { prefix: self.key(relative), url: self.url_of(relative), ..self.clone() }
    }

    /// How a person would name this location.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The whole URL of a key, for messages.
    pub fn url_of(&self, key: &str) -> String {
        format!("{}/{key}", self.url)
    }

    /// The store itself, for streaming readers and writers.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The store's own path of a key.
    pub fn key(&self, key: &str) -> Path {
        key.split('/').filter(|p| !p.is_empty()).fold(self.prefix.clone(), |p, part| p.join(part))
    }

    /// The file of a key, where this location is a local folder.
    pub fn local_file(&self, key: &str) -> Option<PathBuf> {
        self.s3.is_none().then(|| std::path::Path::new(&self.url).join(key))
    }

    /// Ranged reads by a policy. On a local disk, of it only the number at once matters.
    pub fn reads(&self, policy: RequestPolicy) -> Result<Reads> {
        let Some(builder) = &self.s3 else {
            const EVER: Duration = Duration::from_secs(365 * 24 * 3600);
            let policy =
                RequestPolicy { retries: 0, hedge_share: 0.0, first_byte: EVER, whole: EVER, ..policy };
            return Ok(Reads::new(self.clone(), self.store.clone(), policy));
        };
        // No time limit and no retry of its own: the policy has them.
        let mut client = ClientOptions::new().with_connect_timeout(policy.connect).with_timeout_disabled();
        client = client.with_allow_http(self.endpoint.starts_with("http://"));
        let once = RetryConfig { max_retries: 0, ..Default::default() };
        let builder = AmazonS3Builder::clone(builder).with_client_options(client).with_retry(once);
        let bad = |e: object_store::Error| Error::BadUrl { url: self.url.clone(), why: e.to_string() };
        Ok(Reads::new(self.clone(), Arc::new(builder.build().map_err(bad)?), policy))
    }

    /// True where objects bear ETags that tell one content from another.
    pub fn has_etags(&self) -> bool {
        self.s3.is_some()
    }

    /// The whole object.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        let r = self.store.get(&self.key(key)).await.map_err(|e| self.error(key, e))?;
        r.bytes().await.map_err(|e| self.error(key, e))
    }

    /// The whole object, or `None` where it does not exist.
    pub async fn get_opt(&self, key: &str) -> Result<Option<Bytes>> {
        match self.get(key).await {
            Ok(b) => Ok(Some(b)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// One byte range of an object.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.store.get_range(&self.key(key), range).await.map_err(|e| self.error(key, e))
    }

    /// Writes or replaces an object, atomically.
    pub async fn put(&self, key: &str, bytes: impl Into<PutPayload>) -> Result<()> {
        self.store.put(&self.key(key), bytes.into()).await.map_err(|e| self.error(key, e))?;
        Ok(())
    }

    /// Writes an object only if none is there: the house's one commit primitive. A lost reply
    /// looks like `Exists`: the caller compares what is there with its own. `Exists`: something is there.
    pub async fn put_if_absent(&self, key: &str, bytes: impl Into<PutPayload>) -> Result<PutOutcome> {
        if self.single_writer {
            return match self.head(key).await {
                Ok(_) => Ok(PutOutcome::Exists),
                Err(e) if e.is_not_found() => self.put(key, bytes).await.map(|()| PutOutcome::Created),
                Err(e) => Err(e),
            };
        }
        let bytes = bytes.into();
        let mut pauses = CONFLICTS.iter();
        loop {
            let options = PutOptions { mode: PutMode::Create, ..Default::default() };
            match self.store.put_opts(&self.key(key), bytes.clone(), options).await {
                Ok(_) => return Ok(PutOutcome::Created),
                Err(e @ object_store::Error::AlreadyExists { .. }) => {
                    // S3 says "conflict" (409) also where it was busy with another request for the key, and
                    // object_store tells the two apart no more.
                    match (self.head(key).await, pauses.next()) {
                        (Ok(_), _) => return Ok(PutOutcome::Exists),
                        (Err(gone), Some(pause)) if gone.is_not_found() => sleep(*pause).await,
                        (Err(gone), None) if gone.is_not_found() => return Err(self.error(key, e)),
                        (Err(e), _) => return Err(e),
                    }
                }
                Err(e) => return Err(self.error(key, e)),
            }
        }
    }

    /// Tries put-if-absent out on `key`, which must be nobody else's: does this store honour it?
    pub async fn honours_put_if_absent(&self, key: &str) -> Result<bool> {
        self.put(key, b"first".to_vec()).await?;
        let outcome = self.put_if_absent(key, b"second".to_vec()).await;
        self.delete(key).await?;
        match outcome {
            Ok(outcome) => Ok(outcome == PutOutcome::Exists),
            // A plain put went well a moment ago: it is the condition that the store does not know.
            Err(Error::Store { source, .. }) if refuses_conditions(&source.to_string()) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// For a store without put-if-absent, where the caller makes sure that nobody else writes: looks first, then
    /// puts.
    pub fn with_single_writer(self) -> Self {
        Self { single_writer: true, ..self }
    }

    /// Copies an object of another location to `key`, atomically: inside the store where both share it (a local
    /// file becomes a hard link), else through this machine, a few MiB at a time.
    pub async fn copy_from(&self, key: &str, from: &Location, from_key: &str) -> Result<()> {
        const PART: usize = 16 << 20;
        let (source, target) = (from.key(from_key), self.key(key));
        let share = self.endpoint == from.endpoint && bucket(&self.url) == bucket(&from.url);
        if share && source == target {
            return Ok(());
        }
        if share {
            match self.store.copy(&source, &target).await {
                Ok(()) => return Ok(()),
                Err(e @ object_store::Error::NotFound { .. }) => return Err(from.error(from_key, e)),
                // Two disks share no links, and some stores copy nothing by themselves.
                Err(_) => {}
            }
        }
        let got = from.store.get(&source).await.map_err(|e| from.error(from_key, e))?;
        let mut chunks = got.into_stream();
        let upload = self.store.put_multipart(&target).await.map_err(|e| self.error(key, e))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
        loop {
            match chunks.try_next().await {
                Ok(Some(chunk)) => {
                    writer.wait_for_capacity(4).await.map_err(|e| self.error(key, e))?;
                    writer.put(chunk);
                }
                Ok(None) => break,
                Err(e) => {
                    // The parts would lie about unseen; what matters is why.
                    let _ = writer.abort().await;
                    return Err(from.error(from_key, e));
                }
            }
        }
        writer.finish().await.map_err(|e| self.error(key, e))?;
        Ok(())
    }

    /// SHA-256 of a whole object, which may be large: read a piece at a time.
    pub async fn sha256_of(&self, key: &str) -> Result<String> {
        const PIECE: u64 = 16 << 20;
        let (bytes, _) = self.head(key).await?;
        let mut hasher = Sha256::new();
        for at in (0..bytes).step_by(PIECE as usize) {
            hasher.update(self.get_range(key, at..(at + PIECE).min(bytes)).await?);
        }
        Ok(crate::hex(&hasher.finalize()))
    }

    /// Size and ETag of an object.
    pub async fn head(&self, key: &str) -> Result<(u64, Option<String>)> {
        let m = self.store.head(&self.key(key)).await.map_err(|e| self.error(key, e))?;
        Ok((m.size, m.e_tag))
    }

    /// Removes an object; one that is gone already is fine.
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self.store.delete(&self.key(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error(key, e)),
        }
    }

    /// Every object below `prefix`, sorted by key.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let base = format!("{}/", self.prefix);
        let mut found: Vec<Listed> = self
            .store
            .list(Some(&self.key(prefix)))
            .map_ok(|m| Listed {
                key: m.location.as_ref().strip_prefix(&base).unwrap_or(m.location.as_ref()).to_string(),
                bytes: m.size,
                unix_ms: m.last_modified.timestamp_millis(),
            })
            .try_collect()
            .await
            .map_err(|e| self.error(prefix, e))?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    pub(crate) fn error(&self, key: &str, e: object_store::Error) -> Error {
        const OTHER_REGION: [&str; 4] = [
            "PermanentRedirect",
            "AuthorizationHeaderMalformed",
            "redirect without LOCATION",
            "IllegalLocation",
        ];
        let url = self.url_of(key);
        let text = e.to_string();
        match e {
            _ if OTHER_REGION.iter().any(|w| text.contains(w)) => Error::WrongRegion { url, why: text },
            object_store::Error::Precondition { .. } => Error::Changed { url },
            _ if text.contains("NoSuchBucket") => Error::NoBucket { url },
            object_store::Error::NotFound { .. } => Error::NotFound { url },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Error::Denied { url, why: text }
            }
            _ if !self.endpoint.is_empty()
                && ["error sending request", "Connect"].iter().any(|w| text.contains(w)) =>
            {
                Error::Unreachable { url, endpoint: self.endpoint.clone(), why: text }
            }
            source => Error::Store { url, source },
        }
    }
}

/// Whether a store's error says that it knows no conditional writes.
fn refuses_conditions(text: &str) -> bool {
    ["501", "NotImplemented", "not implemented"].iter().any(|w| text.contains(w))
}

/// `s3://bucket` of a URL; the same for all local paths.
fn bucket(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    url.get(..scheme.len() + 3 + rest.find('/').unwrap_or(rest.len()))
}

/// Patient enough for a server that restarts or throttles, short enough that a wrong endpoint is told within some ten seconds.
fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(200),
        max_backoff: Duration::from_secs(10),
        base: 3.0,
    };
    RetryConfig { backoff, max_retries: 8, retry_timeout: Duration::from_secs(60) }
}
