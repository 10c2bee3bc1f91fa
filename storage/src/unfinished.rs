//! What interrupted writes leave behind, unseen by any listing: on S3 the parts of multipart uploads that were
//! neither completed nor aborted (and are billed), on a local disk half-written files.

use crate::{Error, Location, Result};
use http::Method;
use object_store::{
    ClientOptions,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector, HttpRequestBody, ReqwestConnector},
    multipart::MultipartStore,
    path::Path,
    signer::{SignedUrlOptions, Signer},
};
use serde::Deserialize;
use std::{path::PathBuf, time::Duration};

/// For which a signed request is good.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// One page of S3's ListMultipartUploads.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    upload: Vec<Upload>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
}

impl Location {
    /// Removes what unfinished writes below `prefix` have left, of those objects whose key `stale` accepts.
    /// Returns how many there were. Writes that are still under way are not told apart: `stale` must.
    pub async fn remove_unfinished(&self, prefix: &str, stale: impl Fn(&str) -> bool) -> Result<usize> {
        match &self.s3 {
            Some(builder) => self.abort_uploads(builder, prefix, stale).await,
            None => self.remove_halves(prefix, stale),
        }
    }

    async fn abort_uploads(
        &self,
        builder: &AmazonS3Builder,
        prefix: &str,
        stale: impl Fn(&str) -> bool,
    ) -> Result<usize> {
        let failed = |e| self.error(prefix, e);
        let store = builder.clone().build().map_err(failed)?;
        let plain_http = self.endpoint.starts_with("http://");
        let client = ReqwestConnector::default()
            .connect(&ClientOptions::new().with_allow_http(plain_http))
            .map_err(failed)?;
        let base = self.key("");
        let mut markers = vec![];
        let mut removed = 0;
        loop {
            let page = self.page(&store, &client, prefix, &markers).await?;
            for upload in page.upload {
                let path = Path::from(upload.key);
                let key = path.as_ref().strip_prefix(base.as_ref()).map(|k| k.trim_start_matches('/'));
                if key.is_some_and(&stale) {
                    store.abort_multipart(&path, &upload.upload_id).await.map_err(failed)?;
                    removed += 1;
                }
            }
            if !page.is_truncated {
                return Ok(removed);
            }
            markers = vec![
                ("key-marker".to_string(), page.next_key_marker),
                ("upload-id-marker".to_string(), page.next_upload_id_marker),
            ];
        }
    }

    /// The store's client has no such request: it is signed and sent by hand.
    async fn page(
        &self,
        store: &AmazonS3,
        client: &HttpClient,
        prefix: &str,
        markers: &[(String, String)],
    ) -> Result<Page> {
        let broken = |why: String| {
            let source = object_store::Error::Generic { store: "S3", source: why.into() };
            Error::Store { url: self.url_of(prefix), source }
        };
        let options = SignedUrlOptions::default()
            .with_query([("uploads", ""), ("prefix", self.key(prefix).as_ref())])
            .with_query(markers.iter().cloned());
        let url = store.signed_url_opts(Method::GET, &Path::default(), GOOD_FOR, &options).await;
        let url = url.map_err(|e| self.error(prefix, e))?;
        let request = http::Request::get(url.as_str()).body(HttpRequestBody::empty());
        let request = request.map_err(|e| broken(e.to_string()))?;
        let answer = client.execute(request).await.map_err(|e| broken(e.to_string()))?;
        let status = answer.status();
        let text = answer.into_body().bytes().await.map_err(|e| broken(e.to_string()))?;
        let text = String::from_utf8_lossy(&text);
        if !status.is_success() {
            return Err(broken(format!("listing unfinished uploads was answered {status}: {text}")));
        }
        quick_xml::de::from_str(&text).map_err(|e| broken(format!("its list of unfinished uploads: {e}")))
    }

    /// The local store writes a file `NAME#NUMBER` beside the place of `NAME`, and renames it when it is whole.
    fn remove_halves(&self, prefix: &str, stale: impl Fn(&str) -> bool) -> Result<usize> {
        let mut removed = 0;
        let mut folders: Vec<String> = vec![prefix.trim_matches('/').into()];
        while let Some(folder) = folders.pop() {
            let Some(path) = self.local_file(&folder) else { continue };
            let io = |path: PathBuf, source| Error::Io { path: path.display().to_string(), source };
            let entries = match std::fs::read_dir(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(|e| io(path.clone(), e))?,
            };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let key = format!("{folder}/{name}");
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    folders.push(key);
                } else if let Some(whole) = half_of(&key)
                    && stale(whole)
                {
                    std::fs::remove_file(entry.path()).map_err(|e| io(entry.path(), e))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// The key that a half-written file was to become.
fn half_of(key: &str) -> Option<&str> {
    let (whole, number) = key.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::{MultipartUpload, ObjectStoreExt};

    #[tokio::test]
    async fn halves_of_stale_files_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let begin = async |key: &str| {
            let mut upload = location.store().put_multipart(&location.key(key)).await.unwrap();
            upload.put_part(vec![1u8; 10].into()).await.unwrap();
            upload
        };
        let (old, new) = (begin("c/step-1/a/x").await, begin("c/step-2/a/x").await);
        // As after a kill: nobody cleans up.
        std::mem::forget((old, new));
        location.put("c/step-1/a/y#z", vec![1u8]).await.unwrap();
        assert_eq!(location.remove_unfinished("c", |k| k.starts_with("c/step-1/")).await.unwrap(), 1);
        let left: Vec<String> = std::fs::read_dir(dir.path().join("c/step-1/a"))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(location.remove_unfinished("c", |_| true).await.unwrap(), 1);
        assert_eq!(location.remove_unfinished("none", |_| true).await.unwrap(), 0);
    }

    #[test]
    fn a_page_is_read_with_and_without_uploads() {
        let page: Page = quick_xml::de::from_str(
            "<ListMultipartUploadsResult><Bucket>b</Bucket><KeyMarker/><NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>2</NextUploadIdMarker><IsTruncated>true</IsTruncated><Upload><Key>a/b</Key><UploadId>1</UploadId><Initiated>2026-11-01T00:00:00Z</Initiated></Upload><Upload><Key>k</Key><UploadId>2</UploadId></Upload></ListMultipartUploadsResult>",
        )
        .unwrap();
        assert!(page.is_truncated && page.upload.len() == 2 && page.upload[0].key == "a/b");
        let none: Page = quick_xml::de::from_str(
            "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
        )
        .unwrap();
        assert!(none.upload.is_empty() && !none.is_truncated);
    }
}
