//! Makes the batches: one task deals them out in order under the byte budget, a task a batch fetches
//! its clips, and each clip is decoded on the rayon pool into its own part of the batch's buffer.
//!
//! No deadlock: budget is taken in the order of the batches, and a batch that has its share waits
//! for nothing that a later batch holds.

use super::batches::{BatchPlan, Batches, Item};
use super::{Batch, Missing, OnDamage, StreamOptions};
use crate::decode::{decode, is_as_stored};
use crate::reader::Reader;
use crate::{Error, Result};
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// A batch being made, with its share of the budget; dropped, it is given up.
pub(super) type Pending = AbortOnDropHandle<Result<(Batch, OwnedSemaphorePermit)>>;

/// Batches made or waiting at once, however small they are.
const QUEUE: usize = 64;
/// The budget counts these.
const UNIT: u64 = 1024;
/// For so long at most the first batch has the store to itself: whoever resumes waits for that one, and all requests of
/// the later ones would share the line with it.
const HEAD_START: Duration = Duration::from_millis(300);

/// Starts the pipeline; it stops when either result is dropped.
pub(super) fn start(
    readers: Arc<[Reader]>,
    batches: Batches,
    spares: Arc<Spares>,
    options: &StreamOptions,
) -> Result<(AbortOnDropHandle<()>, mpsc::Receiver<Pending>)> {
    let pool = ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .thread_name(|i| format!("decode-{i}"))
        // The job's batch reports it: its answer never comes.
        .panic_handler(|_| ())
        .build()
        .map_err(|e| Error::Stopped(format!("start {} decode threads: {e}", options.threads)))?;
    let maker = Arc::new(Maker { readers, pool, spares, on_damage: options.on_damage });
    let (sender, queue) = mpsc::channel(QUEUE);
    let driver = options.runtime.spawn(deal(maker, batches, options.prefetch_bytes, sender));
    Ok((AbortOnDropHandle::new(driver), queue))
}

async fn deal(maker: Arc<Maker>, batches: Batches, prefetch_bytes: u64, queue: mpsc::Sender<Pending>) {
    // A batch larger than the whole budget gets all of it, and so is made alone.
    let total = (prefetch_bytes / UNIT).clamp(1, u64::from(u32::MAX)) as u32;
    let units = |bytes: u64| bytes.div_ceil(UNIT).clamp(1, u64::from(total)) as u32;
    let budget = Arc::new(Semaphore::new(total as usize));
    let (first, first_made) = oneshot::channel::<()>();
    let (mut first, mut first_made) = (Some(first), Some(first_made));
    for plan in batches {
        // The place in the queue first: an aborted wait for it holds no budget.
        let Ok(place) = queue.reserve().await else { return };
        let pending = match plan {
            Ok(plan) => {
                let pixels: u64 = plan.shape.iter().map(|&n| n as u64).product();
                let cost = units(pixels.saturating_add(plan.fetch_bytes));
                let Ok(mut share) = budget.clone().acquire_many_owned(cost).await else { return };
                let fetched = share.split((cost - 1).min(units(plan.fetch_bytes)) as usize);
                let (maker, made) = (maker.clone(), first.take());
                tokio::spawn(async move {
                    let batch = maker.make(plan, share, fetched).await;
                    drop(made);
                    batch
                })
            }
            Err(e) => tokio::spawn(async { Err(e) }),
        };
        place.send(AbortOnDropHandle::new(pending));
        if let Some(made) = first_made.take() {
            // Late, made or given up: the next ones begin.
            let _ = timeout(HEAD_START, made).await;
        }
    }
}

/// Buffers of batches that the trainer is done with. New memory costs the kernel a page fault every 4 KiB,
/// which for stored pixels is as dear as copying them.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Vec<Vec<u8>>>);

impl Spares {
    /// One is on its way to the next batch, one comes back.
    const KEPT: usize = 2;

    pub(super) fn put(&self, buffer: Vec<u8>) {
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spares.len() < Self::KEPT {
            spares.push(buffer);
        }
    }

    /// `bytes` bytes of whatever was there.
    fn take(&self, bytes: usize) -> BytesMut {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match spare {
            Some(mut buffer) if buffer.capacity() >= bytes => {
                buffer.resize(bytes, 0);
                // Nobody else holds it: nothing is copied.
                Bytes::from(buffer).into()
            }
            _ => BytesMut::zeroed(bytes),
        }
    }
}

struct Maker {
    /// One a dataset.
    readers: Arc<[Reader]>,
    pool: ThreadPool,
    spares: Arc<Spares>,
    on_damage: OnDamage,
}

impl Maker {
    async fn make(
        self: Arc<Self>,
        plan: BatchPlan,
        share: OwnedSemaphorePermit,
        fetched: Option<OwnedSemaphorePermit>,
    ) -> Result<(Batch, OwnedSemaphorePermit)> {
        let [views, frames, height, width, channels] = plan.shape;
        let a_view = frames * height * width * channels;
        let mut rest = self.spares.take(views * a_view);
        let mut batch = Batch {
            epoch: plan.epoch,
            step: plan.step,
            frames: Vec::new(),
            shape: plan.shape,
            labels: Vec::with_capacity(views),
            label_sets: Vec::with_capacity(views),
            clips: Vec::with_capacity(views),
            positions: Vec::with_capacity(views),
            views: Vec::with_capacity(views),
            waited: Duration::ZERO,
            global_clips: plan.global_clips,
            missing: Vec::new(),
        };
        let mut jobs = Vec::with_capacity(plan.items.len());
        for item in &plan.items {
            let part = rest.split_to(item.cuts.len() * a_view);
            jobs.push(self.show(item.clone(), (width as u32, height as u32), part));
        }
        drop(rest);
        let mut whole = BytesMut::new();
        // All are waited for, so that the error is that of the first clip, whichever failed first.
        for (part, item) in join_all(jobs).await.into_iter().zip(plan.items) {
            let views = item.cuts.len() as u32;
            match part {
                // The parts are neighbours of one allocation: nothing is copied, but after a clip that is missing.
                Ok(part) => whole.unsplit(part),
                Err(e) if e.is_damage() && self.on_damage == OnDamage::Quarantine => {
                    let (clip, position) = (item.place, item.position);
                    batch.missing.push(Missing { clip, position, views, why: e.to_string() });
                    continue;
                }
                Err(e) => return Err(e),
            }
            for view in item.first_view..item.first_view + views {
                batch.labels.push(item.labels.first().map_or(-1, |&l| i64::from(l)));
                batch.label_sets.push(item.labels.clone());
                batch.clips.push(item.place);
                batch.positions.push(item.position);
                batch.views.push(view);
            }
        }
        batch.shape[0] = batch.labels.len();
        drop(fetched);
        batch.frames = Vec::from(whole);
        Ok((batch, share))
    }

    /// Fetches and decodes one window into its part of the batch. Local files are read by the decode thread.
    async fn show(&self, item: Item, size: (u32, u32), mut part: BytesMut) -> Result<BytesMut> {
        let (source, index) = (item.source, item.clip);
        let reader = &self.readers[source];
        let fetched = match reader.reads_here() {
            true => None,
            false => Some(match &item.group {
                Some(group) => reader.fetch_of(&group.read, index, &item.frames).await?,
                None => reader.fetch(index, &item.frames).await?,
            }),
        };
        let readers = self.readers.clone();
        let (answer, decoded) = oneshot::channel();
        self.pool.spawn_fifo(move || {
            // Nobody waits any more: the stream was dropped.
            if answer.is_closed() {
                return;
            }
            let reader = &readers[source];
            let dataset = reader.dataset();
            let clip = dataset.clip(item.clip);
            let codec = dataset.manifest.codec;
            let (frames, cuts) = (&item.frames, &item.cuts);
            let mut shown = |runs| {
                decode(codec, clip, &runs, frames, cuts, size, &mut part)
                    .map_err(|bad| reader.damaged(clip, bad.run, bad.why))
            };
            let result = match fetched {
                Some(runs) => shown(runs),
                None if is_as_stored(codec, clip, frames, cuts, size) => {
                    reader.read_into(item.clip, frames, &mut part)
                }
                None => reader.fetch_here(item.clip, frames).and_then(&mut shown),
            };
            drop(answer.send(result.map(|()| part)));
        });
        decoded.await.map_err(|_| {
            let clip = &self.readers[source].dataset().clip(index).clip_id;
            Error::Stopped(format!("decode clip {clip:?}: its decode thread ended early"))
        })?
    }
}
