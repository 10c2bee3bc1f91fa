//! Grouped shuffling, for small clips: neighbours in a file are read together and shuffled inside a window.
//!
//! A group is a stretch of a data file. Groups are laid in a fixed random row, which the lanes cut into equal parts, so
//! that a lane has the same pieces of groups in every epoch; it permutes them anew and shuffles the clips of as many as
//! fit its window. The windows of the lanes are staggered: their reads come spread over the epoch.

use super::PlanSpec;
use crate::format::{ClipIndex, Dataset};
use crate::random::Keyed;
use std::ops::Range;
use std::sync::Arc;

/// The largest stretch that is read in one request.
const LARGEST_GROUP: u64 = 8 << 20;
/// A lane's window shuffles at least about so many groups together.
const GROUPS_IN_WINDOW: u64 = 4;
/// Neighbours further apart than this (another split's clips lie between them) are not read together.
const LARGEST_GAP: u64 = 4 << 10;

/// The groups of a split, cut into the lanes' pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Places inside the split, by file and offset, and bytes of each.
    clips: Arc<[(u32, u64)]>,
    /// Lane after lane.
    pieces: Arc<[Piece]>,
    /// Where the lanes' pieces end in `pieces`.
    ends: Arc<[usize]>,
    /// The piece of each place.
    piece_of: Arc<[u32]>,
    /// Bytes that a lane shuffles at once.
    window: u64,
}

/// What is read together: a range of [`Groups::clips`].
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    clips: Range<usize>,
    bytes: u64,
}

impl Groups {
    /// Stretches of `clips`, which are a split of `dataset`. `window`: bytes that all lanes together shuffle at once.
    pub fn new(dataset: &Dataset, clips: &[ClipIndex], window: u64, lanes: u32, seed: u64) -> Self {
        let lanes = lanes.max(1);
        let window = window / u64::from(lanes);
        let largest = (window / GROUPS_IN_WINDOW).min(LARGEST_GROUP);
        let mut at: Vec<(u32, u64, u32, u64)> = (0..)
            .zip(clips)
            .map(|(place, clip)| {
                let c = dataset.clip(*clip);
                (c.file, c.offset, place, c.bytes)
            })
            .collect();
        at.sort_unstable();
        let mut groups: Vec<Range<usize>> = Vec::new();
        let (mut file, mut first, mut end) = (0, 0, 0);
        for (i, &(f, offset, _, bytes)) in at.iter().enumerate() {
            match groups.last_mut() {
                Some(group)
                    if f == file && offset - end <= LARGEST_GAP && offset + bytes - first <= largest =>
                {
                    group.end = i + 1;
                }
                _ => {
                    groups.push(i..i + 1);
                    (file, first) = (f, offset);
                }
            }
            end = offset + bytes;
        }
        Keyed::new("group row", &dataset.digest, &[seed]).shuffle(&mut groups);
        let clips: Arc<[(u32, u64)]> = at.into_iter().map(|(_, _, place, bytes)| (place, bytes)).collect();
        let (pieces, ends) = cut(&clips, &groups, lanes as usize);
        let mut piece_of = vec![0; clips.len()];
        for (number, piece) in (0..).zip(&pieces) {
            clips[piece.clips.clone()].iter().for_each(|(place, _)| piece_of[*place as usize] = number);
        }
        Self { clips, pieces: pieces.into(), ends: ends.into(), piece_of: piece_of.into(), window }
    }

    /// Pieces of all lanes.
    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    /// The piece that a clip of the split is read with.
    pub fn piece_of(&self, place: u32) -> u32 {
        self.piece_of[place as usize]
    }

    /// The clips of a piece, by their places inside the split and in the order of the file.
    pub fn places(&self, piece: u32) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.clips[self.pieces[piece as usize].clips.clone()].iter().map(|(place, _)| *place)
    }

    /// Clips of the split.
    pub(super) fn clips(&self) -> u64 {
        self.clips.len() as u64
    }

    /// All that the order depends on.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let places = self.clips.iter().map(|(place, _)| u64::from(*place));
        let pieces = self.pieces.iter().flat_map(|p| [p.clips.start as u64, p.clips.end as u64, p.bytes]);
        places.chain(pieces).chain(self.ends.iter().map(|e| *e as u64)).chain([self.window])
    }

    /// The lane's clips in the order of an epoch.
    pub(super) fn order(&self, spec: &PlanSpec, epoch: u64, lane: u32) -> Vec<u32> {
        let end = self.ends[lane as usize];
        let start = (lane as usize).checked_sub(1).map_or(0, |before| self.ends[before]);
        let mut pieces: Vec<&Piece> = self.pieces[start..end].iter().collect();
        let mut random = Keyed::new("group order", &spec.dataset_digest, &[spec.seed, epoch, lane.into()]);
        random.shuffle(&mut pieces);
        let mut order: Vec<u32> = Vec::new();
        let (mut begun, mut bytes) = (0, 0);
        // The first window is shorter, in each lane by another part.
        let mut window = self.window * (u64::from(lane) + 1) / u64::from(spec.lanes);
        for piece in pieces {
            if bytes > 0 && bytes + piece.bytes > window {
                random.shuffle(&mut order[begun..]);
                (begun, bytes, window) = (order.len(), 0, self.window);
            }
            order.extend(self.clips[piece.clips.clone()].iter().map(|(place, _)| *place));
            bytes += piece.bytes;
        }
        random.shuffle(&mut order[begun..]);
        order
    }
}

/// The row of groups in as many parts as there are lanes, the first ones a clip longer where the lanes do not divide
/// the clips; a group at a border becomes two pieces. Gives back the pieces and where each lane's end.
fn cut(clips: &[(u32, u64)], row: &[Range<usize>], lanes: usize) -> (Vec<Piece>, Vec<usize>) {
    let (mut pieces, mut ends) = (Vec::new(), Vec::with_capacity(lanes));
    let mut row = row.iter().cloned();
    let mut rest = 0..0;
    for lane in 0..lanes {
        let mut wanted = clips.len() / lanes + usize::from(lane < clips.len() % lanes);
        while wanted > 0 {
            if rest.is_empty() {
                let Some(next) = row.next() else { break };
                rest = next;
            }
            let taken = rest.start..rest.end.min(rest.start + wanted);
            wanted -= taken.len();
            rest.start = taken.end;
            let bytes = clips[taken.clone()].iter().map(|c| c.1).sum();
            pieces.push(Piece { clips: taken, bytes });
        }
        ends.push(pieces.len());
    }
    (pieces, ends)
}
