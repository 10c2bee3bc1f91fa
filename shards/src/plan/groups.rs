//! Grouped shuffling, for small clips: neighbours in a file are read together and shuffled inside a window.
//!
//! A group is a stretch of a data file. Groups are laid in a fixed random row, which the lanes cut into equal parts;
//! every epoch, a lane permutes its groups and shuffles the clips of as many as fit the window.

use super::PlanSpec;
use crate::format::{ClipIndex, Dataset};
use crate::random::Keyed;
use std::ops::Range;
use std::sync::Arc;

/// The groups of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Places inside the split, by file and offset, and bytes of each.
    clips: Arc<Vec<(u32, u64)>>,
    /// Where each group ends in `clips`.
    ends: Arc<Vec<u32>>,
    /// Bytes that a lane shuffles at once.
    pub window: u64,
}

/// The part of a group that a lane has: what is read together. Numbered by its first clip in [`Groups::clips`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub clips: Range<u32>,
    bytes: u64,
}

impl Groups {
    /// Stretches of about `group` bytes of `clips`, which are a split of `dataset`. `window`: bytes that all lanes
    /// together shuffle at once.
    pub fn new(dataset: &Dataset, clips: &[ClipIndex], group: u64, window: u64, lanes: u32) -> Self {
        let mut at: Vec<(u32, u64, u32, u64)> = (0..)
            .zip(clips)
            .map(|(place, clip)| {
                let c = dataset.clip(*clip);
                (c.file, c.offset, place, c.bytes)
            })
            .collect();
        at.sort_unstable();
        let mut ends = Vec::new();
        let (mut file, mut first) = (0, 0);
        for (i, (f, offset, _, bytes)) in at.iter().enumerate() {
            if i == 0 || *f != file || offset + bytes - first > group {
                if i > 0 {
                    ends.push(i as u32);
                }
                (file, first) = (*f, *offset);
            }
        }
        ends.push(at.len() as u32);
        Self {
            clips: Arc::new(at.into_iter().map(|(_, _, place, bytes)| (place, bytes)).collect()),
            ends: Arc::new(ends),
            window: window / u64::from(lanes.max(1)),
        }
    }

    /// Groups of the split.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Places inside the split, by file and offset.
    pub fn places(&self, piece: &Piece) -> impl Iterator<Item = u32> + '_ {
        self.clips[piece.clips.start as usize..piece.clips.end as usize].iter().map(|(place, _)| *place)
    }

    /// All that the order depends on.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let clips = self.clips.iter().flat_map(|(place, bytes)| [u64::from(*place), *bytes]);
        clips.chain(self.ends.iter().map(|e| u64::from(*e))).chain([self.window])
    }

    /// The pieces of the lane that has the clips `range` of the fixed row, in the row's order.
    fn pieces(&self, spec: &PlanSpec, range: Range<u64>) -> Vec<Piece> {
        let mut row: Vec<u32> = (0..self.ends.len() as u32).collect();
        Keyed::new("group row", &spec.dataset_digest, &[spec.seed]).shuffle(&mut row);
        let (mut pieces, mut at) = (vec![], 0u64);
        for group in row {
            let start = group.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
            let len = u64::from(self.ends[group as usize] - start);
            let (from, to) = (range.start.max(at), range.end.min(at + len));
            if from < to {
                let clips = start + (from - at) as u32..start + (to - at) as u32;
                let bytes = self.clips[clips.start as usize..clips.end as usize].iter().map(|c| c.1).sum();
                pieces.push(Piece { clips, bytes });
            }
            at += len;
        }
        pieces
    }

    /// The lane's clips in the order of an epoch, each with the number of its piece.
    pub(super) fn order(
        &self,
        spec: &PlanSpec,
        epoch: u64,
        lane: u32,
        range: Range<u64>,
    ) -> (Vec<u32>, Vec<Piece>) {
        let mut pieces = self.pieces(spec, range);
        let mut random = Keyed::new("group order", &spec.dataset_digest, &[spec.seed, epoch, lane.into()]);
        random.shuffle(&mut pieces);
        let mut order: Vec<u32> = Vec::new();
        let (mut begun, mut bytes) = (0, 0);
        for (i, piece) in pieces.iter().enumerate() {
            if bytes > 0 && bytes + piece.bytes > self.window {
                random.shuffle(&mut order[begun..]);
                (begun, bytes) = (order.len(), 0);
            }
            order.extend(self.places(piece));
            bytes += piece.bytes;
            if i + 1 == pieces.len() {
                random.shuffle(&mut order[begun..]);
            }
        }
        (order, pieces)
    }
}
