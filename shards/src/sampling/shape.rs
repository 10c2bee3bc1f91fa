//! A training view in a step of multigrid training: fewer frames, further apart, and smaller crops. Pure.
//!
//! Follows PySlowFast's `datasets/kinetics.py` (the smallest short side shrinks with the crop, the largest stays)
//! and `datasets/utils.py::get_random_sampling_rate` (the stride is drawn, so that some clips cover the
//! full window's time).

use super::{ClipSpec, Scale, View};
use crate::plan::Shape;
use crate::random::Keyed;

impl View {
    /// This view with a crop of the shape's side; evaluation views stay as they are.
    pub(crate) fn shaped(&self, shape: Shape) -> View {
        let mut view = self.clone();
        if let View::Train { crop, scale, .. } = &mut view {
            if let Scale::ShortSide { min, max } = scale {
                let scaled = f64::from(*min) * f64::from(shape.side) / f64::from(*crop);
                *min = (scaled.round_ties_even() as u32).clamp(shape.side, (*max).max(shape.side));
            }
            *crop = shape.side;
        }
        view
    }

    /// The window of the shape's frames for one view: its sampling rate is uniform between the full window's
    /// and the one that covers the full window's time.
    pub(crate) fn window(
        &self,
        full: &ClipSpec,
        shape: Shape,
        epoch: u64,
        position: u64,
        view: u32,
    ) -> ClipSpec {
        let most = full.sampling_rate * (full.frames / shape.frames.max(1)).max(1);
        let sampling_rate = match *self {
            View::Train { seed, .. } if most > full.sampling_rate => {
                let key = [seed, epoch, position, u64::from(view)];
                let more = u64::from(most - full.sampling_rate);
                full.sampling_rate + Keyed::new("sampling rate", "", &key).below(more + 1) as u32
            }
            _ => full.sampling_rate,
        };
        ClipSpec { frames: shape.frames, sampling_rate, ..*full }
    }
}
