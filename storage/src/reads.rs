//! Reads of a location by a [`RequestPolicy`]: what training asks a store for, millions of times.

use crate::requests::{Failure, RequestPolicy, RequestStats, Requests};
use crate::{Error, Location, Result};
use bytes::Bytes;
use object_store::{
    GetOptions, GetRange, ObjectStore,
    client::{HttpError, HttpErrorKind},
};
use std::{ops::Range, sync::Arc};

/// Ranged reads below one location, each with deadlines, retries and second copies.
#[derive(Debug)]
pub struct Reads {
    location: Location,
    /// Repeats nothing by itself, so that the policy sees every failure.
    store: Arc<dyn ObjectStore>,
    requests: Requests,
}

impl Reads {
    pub(crate) fn new(location: Location, store: Arc<dyn ObjectStore>, policy: RequestPolicy) -> Self {
        Self { location, store, requests: Requests::new(policy) }
    }

    /// Where it reads.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What it has done so far.
    pub fn stats(&self) -> RequestStats {
        self.requests.stats()
    }

    /// One byte range of an object. With `etag`, only of the object that bears it.
    ///
    /// # Errors
    /// As the store says, after the retries; [`Error::Changed`] where the object bears another ETag.
    pub async fn get_range(&self, key: &str, range: Range<u64>, etag: Option<&str>) -> Result<Bytes> {
        let path = self.location.key(key);
        let url = self.location.url_of(key);
        let failure = |e| classify(e, |e| self.location.error(key, e));
        self.requests
            .run(|| {
                let options =
                    GetOptions::new().with_range(Some(GetRange::Bounded(range.clone()))).with_if_match(etag);
                let head = async { self.store.get_opts(&path, options).await.map_err(failure) };
                self.requests.in_time(&url, head, |answer| async { answer.bytes().await.map_err(failure) })
            })
            .await
    }
}

/// What is to be done about a failure of the store.
fn classify(e: object_store::Error, word: impl Fn(object_store::Error) -> Error) -> Failure {
    let transport = chain(&e).find_map(|e| e.downcast_ref::<HttpError>()).map(HttpError::kind);
    let status = transport.is_none().then(|| status(&e)).flatten();
    match (transport, status) {
        (_, Some(429 | 503)) => Failure::Throttled(word(e)),
        (_, Some(408 | 500..)) => Failure::Transient(word(e)),
        // An answer that breaks off is of unknown kind.
        (Some(HttpErrorKind::Timeout), _) => Failure::Late(word(e)),
        (Some(_), _) => Failure::Transient(word(e)),
        _ => Failure::Fatal(word(e)),
    }
}

fn chain<'a>(
    e: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(e), |e| e.source())
}

/// The HTTP status of an answer that was no success: the crate gives it in words only.
fn status(e: &object_store::Error) -> Option<u16> {
    let text = e.to_string();
    let (_, after) = text.split_once("status code: ")?;
    after.get(..3)?.parse().ok()
}
