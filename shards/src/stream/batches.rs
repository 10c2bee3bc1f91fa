//! What each batch of a pass shows: clips, frames and cuts, before any byte is read. Pure.

use super::{EvalPass, Sources, TrainPass, View};
use crate::format::{Clip, ClipIndex};
use crate::plan::{Sample, Shape, sequential};
use crate::reader::{Group, fetch_bytes};
use crate::sampling::{ClipSpec, Cut};
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// One window of one clip and all its cuts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// The dataset that it lies in.
    pub(crate) source: usize,
    /// Its number there.
    pub(crate) clip: ClipIndex,
    /// Place inside the split.
    pub(super) place: u32,
    pub(super) position: u64,
    /// Number of its first view; one more a cut.
    pub(super) first_view: u32,
    /// Label ids; none: unlabelled.
    pub(super) labels: Vec<i32>,
    /// Stored frames.
    pub(crate) frames: Vec<u32>,
    pub(crate) cuts: Vec<Cut>,
    /// What it is read with.
    pub(crate) group: Option<Grouped>,
}

/// The neighbours that a clip is read with; in memory until its last item is dropped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grouped {
    pub(crate) read: Arc<Group>,
    /// The first item of a pass that asks for it.
    pub(crate) first: bool,
}

/// One batch to come.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchPlan {
    pub(crate) epoch: u64,
    pub(super) step: u64,
    pub(crate) items: Vec<Item>,
    pub(super) shape: [usize; 5],
    /// Bytes of stored runs that it needs.
    pub(super) fetch_bytes: u64,
    pub(super) global_clips: usize,
}

/// All batches of a pass, in order.
#[derive(Debug)]
pub(crate) struct Batches {
    sources: Sources,
    clips: Vec<ClipIndex>,
    clip: ClipSpec,
    view: View,
    order: Order,
    /// Batches not yet given, by number.
    numbers: Range<u64>,
    held: Held,
}

/// The groups of which clips are still to be shown.
#[derive(Debug, Default)]
struct Held {
    /// Of which epoch.
    epoch: Option<u64>,
    /// By piece: clips still to be shown, and the group once it was asked for.
    pieces: HashMap<u32, (u32, Option<Arc<Group>>)>,
}

#[derive(Debug)]
enum Order {
    /// Numbers are steps of the whole run.
    Train { plan: Arc<crate::plan::Plan>, rank: u32, world: u32 },
    /// Numbers count batches of `windows` windows of the clips in `part`.
    Eval { part: Range<u64>, windows: u64 },
}

impl Batches {
    pub(crate) fn train(sources: &Sources, pass: TrainPass) -> Result<Self> {
        if matches!(pass.view, View::Eval { .. }) {
            return Err(Error::Usage("stream training clips: the view is one for evaluation".into()));
        }
        let plan = pass.plan;
        let digest = sources.digest();
        if plan.spec().clips != pass.clips.len() as u64 || plan.spec().dataset_digest != digest {
            return Err(Error::Usage(format!(
                "stream training clips: the plan was made for {} clips of dataset {}, not for these {} of {}",
                plan.spec().clips,
                plan.spec().dataset_digest,
                pass.clips.len(),
                digest
            )));
        }
        plan.lanes_of_rank(pass.rank, pass.world)?;
        let (epoch, step) = pass.start;
        let per_epoch = plan.steps_per_epoch(epoch);
        let first = plan.first_step(epoch).checked_add(step);
        let Some(first) = first.filter(|_| step <= per_epoch) else {
            return Err(Error::Usage(format!(
                "start at step {step} of epoch {epoch}: this epoch has {per_epoch} steps"
            )));
        };
        let shapes: Vec<Shape> = plan.spec().stages.iter().flat_map(|s| s.cycle.clone()).collect();
        for shape in &shapes {
            pass.view.shaped(*shape).check()?;
            pass.view.window(&pass.clip, *shape, 0, 0, 0).check()?;
        }
        let batch = shapes.iter().map(|s| s.batch).max().unwrap_or(1);
        let batch = u64::from(batch) * u64::from(plan.spec().global_batch);
        let largest = batch.saturating_mul(pass.view.count().into());
        let order = Order::Train { plan, rank: pass.rank, world: pass.world };
        Self::checked(sources, pass.clips, pass.clip, pass.view, order, first..pass.end.max(first), largest)
    }

    pub(super) fn eval(sources: &Sources, pass: EvalPass) -> Result<Self> {
        let View::Eval { clips: windows, crops, .. } = pass.view else {
            return Err(Error::Usage("stream clips for evaluation: the view is one for training".into()));
        };
        pass.view.check()?;
        if pass.world == 0 || pass.rank >= pass.world {
            return Err(Error::Usage(format!("evaluate as rank {} of {}", pass.rank, pass.world)));
        }
        let part = sequential(pass.clips.len() as u64, pass.rank, pass.world);
        let a_batch = u64::from((pass.batch / crops).max(1));
        let count = ((part.end - part.start) * u64::from(windows)).div_ceil(a_batch);
        let order = Order::Eval { part, windows: a_batch };
        let largest = a_batch * u64::from(crops);
        Self::checked(sources, pass.clips, pass.clip, pass.view, order, 0..count, largest)
    }

    fn checked(
        sources: &Sources,
        clips: Vec<ClipIndex>,
        clip: ClipSpec,
        view: View,
        order: Order,
        numbers: Range<u64>,
        largest: u64,
    ) -> Result<Self> {
        clip.check()?;
        view.check()?;
        if let Some(bad) = clips.iter().find(|c| c.0 as usize >= sources.len()) {
            return Err(Error::Usage(format!("stream clip {}: there is no such clip", bad.0)));
        }
        // What one batch can weigh at most must be a number of bytes at all.
        let (width, height) = view.size();
        let a_view = u64::from(clip.frames) * u64::from(width) * u64::from(height) * 3;
        if largest.checked_mul(a_view).is_none_or(|b| b > isize::MAX as u64) {
            return Err(Error::Usage(format!("stream batches of {largest} views: too large for any memory")));
        }
        if let View::Whole { .. } = view {
            whole_clips(sources, &clips, view.size())?;
        }
        let held = Held::default();
        Ok(Self { sources: sources.clone(), clips, clip, view, order, numbers, held })
    }

    /// Batches to come.
    pub(super) fn remaining(&self) -> u64 {
        self.numbers.end - self.numbers.start
    }

    /// The pieces that are held: asked for, and with clips still to show.
    #[cfg(test)]
    pub(super) fn held_pieces(&self) -> impl Iterator<Item = u32> + '_ {
        self.held.pieces.iter().filter(|(_, (_, group))| group.is_some()).map(|(piece, _)| *piece)
    }

    fn batch(&mut self, number: u64) -> Result<BatchPlan> {
        let (epoch, step, mut items, global, shape) = match &self.order {
            Order::Train { plan, rank, world } => {
                let (epoch, step) = plan.place(number);
                let samples = plan.local(epoch, step, *rank, *world)?;
                let shape = plan.shape(epoch, step);
                let view = shape.map_or(Cow::Borrowed(&self.view), |s| Cow::Owned(self.view.shaped(s)));
                let repeats = view.count();
                let shown = samples.into_iter().flat_map(|s| (0..repeats).map(move |r| (s, r)));
                let item = |(s, r): (Sample, u32)| {
                    let window =
                        shape.map_or(self.clip, |shape| view.window(&self.clip, shape, epoch, s.position, r));
                    self.item(&view, &window, epoch, s, r..r + 1)
                };
                let items: Vec<Item> = shown.map(item).collect();
                (epoch, step, items, Some(plan.global_clips(epoch, step) as usize * repeats as usize), shape)
            }
            Order::Eval { part, windows } => (0, number, self.eval_items(part, *windows, number), None, None),
        };
        self.hold(epoch, step, &mut items)?;
        let views = items.iter().map(|i| i.cuts.len()).sum();
        let (frames, (width, height)) = shape
            .map_or((self.clip.frames, self.view.size()), |shape| (shape.frames, (shape.side, shape.side)));
        // A group's bytes belong to the shuffle window, not to a batch.
        let fetch = |i: &Item| match i.group {
            Some(_) => 0,
            None => fetch_bytes(self.sources.dataset(i.source).clip(i.clip), &i.frames),
        };
        Ok(BatchPlan {
            epoch,
            step,
            shape: [views, frames as usize, height as usize, width as usize, 3],
            fetch_bytes: items.iter().map(fetch).sum(),
            global_clips: global.unwrap_or(views),
            items,
        })
    }

    /// Gives the items of a training step their groups, and lets go of those that have no more to show.
    fn hold(&mut self, epoch: u64, step: u64, items: &mut [Item]) -> Result<()> {
        let Order::Train { plan, rank, world } = &self.order else { return Ok(()) };
        let crate::plan::Order::Grouped(groups) = &plan.spec().order else { return Ok(()) };
        if self.held.epoch != Some(epoch) {
            let lanes = plan.lanes_of_rank(*rank, *world)?;
            let left = plan.left_of_pieces(epoch, step, lanes).unwrap_or_default();
            let pieces = left.into_iter().map(|(piece, left)| (piece, (left, None))).collect();
            self.held = Held { epoch: Some(epoch), pieces };
        }
        let mut shown = None;
        for item in items {
            let piece = groups.piece_of(item.place);
            let Some((left, group)) = self.held.pieces.get_mut(&piece) else { continue };
            let first = group.is_none();
            let read = group.get_or_insert_with(|| {
                let clips = groups.places(piece).map(|place| self.clips[place as usize]);
                Arc::new(Group::of(self.sources.dataset(item.source), clips))
            });
            item.group = Some(Grouped { read: read.clone(), first });
            // The repeats of a clip are neighbours.
            if shown.replace(item.position) != Some(item.position) {
                *left -= 1;
            }
        }
        self.held.pieces.retain(|_, (left, _)| *left > 0);
        Ok(())
    }

    fn eval_items(&self, part: &Range<u64>, a_batch: u64, number: u64) -> Vec<Item> {
        let View::Eval { clips: windows, crops, .. } = self.view else { return Vec::new() };
        let windows = u64::from(windows);
        let end = (part.end - part.start) * windows;
        let item = |window: u64| {
            let place = part.start + window / windows;
            let first = (window % windows) as u32 * crops;
            self.item(
                &self.view,
                &self.clip,
                0,
                Sample { clip: place as u32, position: place },
                first..first + crops,
            )
        };
        (number * a_batch..((number + 1) * a_batch).min(end)).map(item).collect()
    }

    /// Views of one window: they share their frames.
    fn item(&self, view: &View, window: &ClipSpec, epoch: u64, sample: Sample, views: Range<u32>) -> Item {
        let number = self.clips[sample.clip as usize];
        let (source, clip) = self.sources.place(number);
        let labels = self.sources.label_ids(number);
        let meta = Clip { label: None, labels: &labels, ..self.sources.dataset(source).clip(clip) };
        let first_view = views.start;
        let mut frames = Vec::new();
        let cuts = views
            .map(|number| {
                let draw = view.draw(window, meta, epoch, sample.position, number);
                frames = draw.frames;
                draw.cut
            })
            .collect();
        let (place, position) = (sample.clip, sample.position);
        Item { source, clip, place, position, first_view, labels, frames, cuts, group: None }
    }
}

/// Frames can only be shown as they are where they all have the batch's size.
fn whole_clips(sources: &Sources, clips: &[ClipIndex], size: (u32, u32)) -> Result<()> {
    let other = clips.iter().map(|&c| sources.clip(c)).find(|c| (c.width, c.height) != size);
    other.map_or(Ok(()), |clip| {
        Err(Error::Usage(format!(
            "stream whole clips of {}x{} pixels: clip {:?} is {}x{}; choose a crop for clips of several sizes",
            size.0, size.1, clip.clip_id, clip.width, clip.height
        )))
    })
}

impl Iterator for Batches {
    type Item = Result<BatchPlan>;

    fn next(&mut self) -> Option<Self::Item> {
        self.numbers.next().map(|number| self.batch(number))
    }
}
