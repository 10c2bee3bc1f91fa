//! A checkpoint of the running generation: this rank's share is copied at the step boundary; the rest runs behind the
//! next steps, on into the next generation.

use super::{Job, generation::Generation, kept::Upload, now};
use crate::{
    Error, Result,
    checkpoint::{
        layout::{Header, Place},
        local::Local,
        save::{self, Packed},
    },
};
use proto::v1::{self, worker_message::Kind as Message};
use std::time::Duration;
use storage::Bandwidth;
use tokio::time::timeout;

/// How often a rank that waits for its upload says that it is alive, and looks whether the others are.
const TICK: Duration = Duration::from_millis(500);

impl Generation<'_> {
    /// Copies this rank's share at the step boundary. What follows is not waited for: packed, written to the node's
    /// disk where the job wants that, uploaded, and reported.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        self.wait_upload()?;
        let place = self.kept.position;
        self.session.progress().at("saving", self.at.generation, place.epoch, place.step);
        let (job, at) = (self.job, &self.at);
        let header = Header {
            evaluation_owed: self.kept.owed.measure,
            ..header(job, place, at.world as u32, at.generation)?
        };
        let began = now();
        let snapshot = save::snapshot(self.kept.state.entries(), header, at.rank as u32)?;
        let (megabytes, took) = (snapshot.bytes() as f64 / 1e6, began.elapsed().as_secs_f64() * 1e3);
        tracing::info!("checkpoint of step {}: {megabytes:.1} MB copied in {took:.1} ms", place.step);
        let limit = job.config.checkpoint.bandwidth.map(|b| Bandwidth::new(b.0));
        (self.kept.saved, self.kept.generation) = (Some(place.step), self.at.generation);
        let (run, local, within) = (job.run.clone(), job.local.clone(), limit.clone());
        let (send, say) = (self.session.shard_sender(), self.session.sender());
        let task = job.runtime.spawn(async move {
            let packed = snapshot.pack().await?;
            if let Some(local) = local
                && let Err(text) = write(local, packed.clone()).await
            {
                tracing::warn!("{text}");
                say(Message::Log(v1::Log { level: "warn".into(), text }));
            }
            send(packed.upload(&run, within.as_ref()).await?);
            Ok(())
        });
        self.kept.upload = Some(Upload { task, limit });
        Ok(())
    }

    /// Until the last checkpoint that this rank has taken its share of is committed.
    pub(super) fn wait_saved(&mut self) -> Result<()> {
        self.wait_upload()?;
        match self.kept.saved {
            Some(step) => self.session.wait_committed(step, self.at.generation),
            None => Ok(()),
        }
    }

    /// Until this rank's share is uploaded; the generation may end meanwhile. Where all are to leave, the upload may
    /// take all that there is: a job that stops has little time for its checkpoint.
    fn wait_upload(&mut self) -> Result<()> {
        while let Some(upload) = &mut self.kept.upload {
            if let (true, Some(limit)) = (self.session.asked(self.at.generation)?.leave, &upload.limit) {
                limit.lift();
            }
            let done = self.job.runtime.block_on(async { timeout(TICK, &mut upload.task).await });
            if let Ok(uploaded) = done {
                self.kept.upload = None;
                return uploaded.map_err(|e| Error::JobFailed(format!("an upload broke off: {e}")))?;
            }
            self.session.progress().tick();
        }
        Ok(())
    }
}

/// What a checkpoint of this place says of itself.
fn header(job: &Job, place: Place, world: u32, generation: u64) -> Result<Header> {
    let (labels, digest) = (&job.dataset.manifest.labels, &job.dataset.digest);
    let header = Header::new(&job.config, labels, digest, place, world, generation)?;
    Ok(header.with_plan(job.set.plan.spec().identity()))
}

/// The node's own copy is worth a warning, and no more: an error in words.
async fn write(local: Local, share: Packed) -> std::result::Result<(), String> {
    let step = share.header.step;
    let written = tokio::task::spawn_blocking(move || {
        local.write(&share).map_err(|e| format!("{}: {e}", local.url(step, share.header.generation)))
    });
    let why = match written.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(why)) => why,
        Err(e) => e.to_string(),
    };
    Err(format!(
        "the checkpoint of step {step} has no copy on this node (checkpoint.local): failed to write {why}"
    ))
}
