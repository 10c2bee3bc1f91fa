//! All parts of an ingest to one dataset: index, ledger, and then the manifest.

use super::{
    Part, Summary,
    journal::{self, Claim, Done, Record},
};
use crate::{
    Error, Result,
    format::{ClipMeta, DataFile, MANIFEST_KEY, Manifest},
    ledger::{Action, LedgerEntry},
    publish::{Contents, publish},
};
use futures::{StreamExt, TryStreamExt, stream};
use storage::Location;

/// Requests under way at once.
const REQUESTS: usize = 16;

/// Makes the parts that were ingested to `out` one dataset; finds it done where it is.
///
/// # Errors
/// Nothing was begun there, a part is not through (it is named), a data file is gone, nothing at all could be read,
/// or the store's own.
pub async fn finish(out: &Location) -> Result<Summary> {
    if let Some(text) = out.get_opt(MANIFEST_KEY).await? {
        let manifest = Manifest::parse(&text, &out.url_of(MANIFEST_KEY))?;
        journal::clear(out).await?;
        return Ok(Summary { manifest, already: true, resumed: 0, repaired: 0 });
    }
    let claim = Claim::get(out).await?.ok_or_else(|| {
        Error::Usage(format!(
            "finish the ingest into {}: none was begun there; ingest its parts first, with --part i/n",
            out.url()
        ))
    })?;
    let parts = gather(out, claim.parts).await?;
    let (mut files, mut clips, mut ledger) = (Vec::new(), Vec::new(), Vec::new());
    for (part, done) in parts {
        for n in 0..done.records {
            let record = Record::get(out, part, n).await?.ok_or_else(|| Error::Damaged {
                url: out.url().into(),
                why: format!("record {n} of part {part} is gone"),
            })?;
            let file = files.len() as u32;
            files.push(record.file);
            clips.extend(record.clips.into_iter().map(|c| ClipMeta { file, ..c }));
            ledger.extend(record.ledger);
        }
        ledger.extend(done.ledger);
    }
    if clips.is_empty() {
        journal::clear(out).await?;
        return Err(nothing(out, claim.plan.inputs, &ledger));
    }
    let files = stream::iter(files).map(|f| present(out, f)).buffered(REQUESTS).try_collect().await?;
    let failed = |e: serde_json::Error| Error::Stopped(format!("write the dataset {}: {e}", out.url()));
    let contents = Contents {
        codec: claim.codec,
        quality: claim.quality,
        labels: claim.labels,
        files,
        clips: &clips,
        ledger: &ledger,
        origin: serde_json::to_value(&claim.plan).map_err(failed)?,
    };
    let manifest = publish(out, contents).await?;
    journal::clear(out).await?;
    let repaired = ledger.iter().filter(|e| e.action == Action::Repaired).count() as u64;
    Ok(Summary { manifest, already: false, resumed: 0, repaired })
}

/// The ends of all parts.
async fn gather(out: &Location, of: u32) -> Result<Vec<(Part, Done)>> {
    let ends: Vec<(Part, Option<Done>)> = stream::iter(Part::all(of))
        .map(async |part| Ok::<_, Error>((part, Done::get(out, part).await?)))
        .buffered(REQUESTS)
        .try_collect()
        .await?;
    let open: Vec<String> = ends.iter().filter(|e| e.1.is_none()).map(|e| e.0.to_string()).collect();
    if !open.is_empty() {
        return Err(Error::Usage(format!(
            "finish the ingest into {}: of its {of} parts these are not through: {}; \
             give their commands (again), with --part {}",
            out.url(),
            open.join(", "),
            open[0]
        )));
    }
    Ok(ends.into_iter().filter_map(|(part, done)| Some((part, done?))).collect())
}

/// A data file as the store has it now.
async fn present(out: &Location, file: DataFile) -> Result<DataFile> {
    let damaged = |why: String| Error::Damaged { url: out.url_of(&file.key), why };
    match out.head(&file.key).await {
        Ok((bytes, _)) if bytes != file.bytes => {
            Err(damaged(format!("it has {bytes} bytes, not {}", file.bytes)))
        }
        // Two machines may have put the same bytes one after the other: the last one's tag counts.
        Ok((_, etag)) => Ok(DataFile { etag: file.etag.and(etag), ..file }),
        Err(e) if e.is_not_found() => Err(damaged("the ingest wrote it but it is gone".into())),
        Err(e) => Err(e.into()),
    }
}

fn nothing(out: &Location, inputs: u64, ledger: &[LedgerEntry]) -> Error {
    let first =
        ledger.first().map_or(String::new(), |e| format!("; {}: {} ({})", e.source, e.reason, e.detail));
    Error::Usage(format!("ingest into {}: none of its {inputs} inputs can be read{first}", out.url()))
}
