//! Which stored frames a window shows. Pure.
//!
//! Training and [`TestSampling::PySlowFast`] follow PySlowFast's `datasets/decoder.py`,
//! [`TestSampling::MmAction2`] follows mmaction2's `datasets/transforms/loading.py::SampleFrames`.

use super::usage;
use crate::Result;
use crate::format::Clip;

/// The temporal window of a view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipSpec {
    /// Frames shown, T.
    pub frames: u32,
    /// Stored frames from one shown frame to the next.
    pub sampling_rate: u32,
    /// The frame rate `sampling_rate` supposes; absent: each clip's own.
    pub fps: Option<f64>,
    /// Each frame is replaced by the window's first: what a single frame can tell.
    pub single_frame: bool,
}

/// Where the windows of an evaluation lie in a clip, and which frames they show. One window alone
/// lies in the middle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TestSampling {
    /// Window i of n starts at i/n of the room that the window leaves in the clip (`get_start_end_idx`);
    /// beyond the clip's end its last frame is repeated.
    #[default]
    PySlowFast,
    /// Window i of n starts at i/(n-1) of the room (`_get_test_clips`, version 1.x), frames are a plain
    /// stride apart; beyond the clip's end it begins anew (`out_of_bound_opt = "loop"`).
    MmAction2,
}

impl ClipSpec {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A number out of its range.
    pub fn check(&self) -> Result<()> {
        if !(1..=4096).contains(&self.frames) {
            return usage(format!("frames is {}; it must be in 1..=4096", self.frames));
        }
        if !(1..=4096).contains(&self.sampling_rate) {
            return usage(format!("sampling_rate is {}; it must be in 1..=4096", self.sampling_rate));
        }
        if self.fps.is_some_and(|f| !(f.is_finite() && f > 0.0)) {
            return usage(format!("fps is {:?}; it must be above 0", self.fps));
        }
        Ok(())
    }

    /// Stored frames that the window covers.
    pub fn span(&self, clip: Clip<'_>) -> f64 {
        let ratio = self.fps.map_or(1.0, |target| clip.fps / target);
        f64::from(self.sampling_rate) * f64::from(self.frames) * ratio
    }

    /// Stored frame of each shown frame; `at` in [0, 1] is where the window starts between the
    /// first and the last possible start. Beyond its end the clip's last frame is repeated.
    pub fn frame_indices(&self, clip: Clip<'_>, at: f64) -> Vec<u32> {
        let last = clip.num_frames.saturating_sub(1) as f32;
        let span = self.span(clip);
        let start = (f64::from(clip.num_frames) - span).max(0.0) * at;
        let shown = linspace(start, start + (span - 1.0).max(0.0), self.frames);
        self.shown(shown.into_iter().map(|i| i.clamp(0.0, last) as u32).collect())
    }

    /// Stored frame of each frame that window `i` of `n` shows in an evaluation.
    pub fn test_indices(&self, clip: Clip<'_>, sampling: TestSampling, i: u32, n: u32) -> Vec<u32> {
        match sampling {
            // PySlowFast would put one window alone at the start, or with USE_OFFSET_SAMPLING in the middle.
            TestSampling::PySlowFast if n <= 1 => self.frame_indices(clip, 0.5),
            TestSampling::PySlowFast => self.frame_indices(clip, f64::from(i) / f64::from(n)),
            TestSampling::MmAction2 => self.shown(self.looped_indices(clip, f64::from(i), f64::from(n))),
        }
    }

    /// `SampleFrames.transform` in test mode; `fps` is its `target_fps`.
    fn looped_indices(&self, clip: Clip<'_>, i: f64, n: f64) -> Vec<u32> {
        let (count, rate) = (f64::from(clip.num_frames.max(1)), f64::from(self.sampling_rate));
        let covered = match self.fps {
            Some(_) => self.span(clip).max(1.0),
            None => f64::from(self.frames - 1) * rate + 1.0,
        };
        let room = (count - covered).max(0.0);
        let start = match self.fps {
            _ if self.frames == 1 => count / n * (i + 0.5),
            _ if n <= 1.0 => (room / 2.0).floor(),
            Some(_) => i * (room / (n - 1.0)).floor(),
            None => (i * (room / (n - 1.0))).round_ties_even(),
        };
        let step = (covered - 1.0) / f64::from(self.frames.max(2) - 1);
        let offset = |t: u32| match self.fps {
            None => rate * f64::from(t),
            // numpy's linspace ends on its end, whatever the multiples of its step say.
            Some(_) if t > 0 && t + 1 == self.frames => (covered - 1.0).floor(),
            Some(_) => (step * f64::from(t)).floor(),
        };
        (0..self.frames).map(|t| ((start + offset(t)) % count) as u32).collect()
    }

    fn shown(&self, mut frames: Vec<u32>) -> Vec<u32> {
        if self.single_frame {
            let first = frames[0];
            frames.fill(first);
        }
        frames
    }
}

/// `torch.linspace(start, end, n)`: in float32 and from both ends, so that frames which fall on a whole
/// number are the reference's.
fn linspace(start: f64, end: f64, n: u32) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n.max(2) - 1) as f32;
    let at = |i: u32| match i < (n / 2).max(1) {
        true => start + step * i as f32,
        false => end - step * (n - 1 - i) as f32,
    };
    (0..n).map(at).collect()
}
