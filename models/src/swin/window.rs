//! The geometry of windows: how a grid of tokens is clamped, padded, shifted and cut, as torchvision does it.

use super::missing;
use crate::{Error, Result};
use tch::{Device, Kind, TchError, Tensor};

/// One way to cut a (T, H, W) grid of tokens into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    size: [i64; 3],
    padded: [i64; 3],
    pub(super) window: [i64; 3],
    shift: [i64; 3],
}

impl Grid {
    /// A window is no longer than the grid, and an axis that one window covers is not shifted.
    pub(super) fn new(size: [i64; 3], full: [i64; 3], shifted: bool) -> Self {
        let axes = [0, 1, 2];
        let whole = axes.map(|a| size[a] <= full[a]);
        let window = axes.map(|a| if whole[a] { size[a] } else { full[a] });
        let shift = axes.map(|a| if whole[a] || !shifted { 0 } else { full[a] / 2 });
        let padded = axes.map(|a| size[a] + missing(size[a], window[a]));
        Self { size, padded, window, shift }
    }

    /// Windows of the whole grid.
    pub(super) fn windows(&self) -> i64 {
        self.counts().iter().product()
    }

    /// Tokens of a window.
    pub(super) fn volume(&self) -> i64 {
        self.window.iter().product()
    }

    /// Tokens (B, T, H, W, C) to windows (B * windows, volume, C): padded with zeros, shifted, cut.
    pub(super) fn cut(&self, x: &Tensor) -> std::result::Result<Tensor, TchError> {
        let (b, _, _, _, c) = x.size5()?;
        let [pt, ph, pw] = [0, 1, 2].map(|a| self.padded[a] - self.size[a]);
        let mut x = x.shallow_clone();
        if self.padded != self.size {
            x = x.f_constant_pad_nd([0, 0, 0, pw, 0, ph, 0, pt])?;
        }
        if self.is_shifted() {
            x = x.f_roll(self.shift.map(|s| -s), [1i64, 2, 3])?;
        }
        let ([nt, nh, nw], [wt, wh, ww]) = (self.counts(), self.window);
        x.f_reshape([b, nt, wt, nh, wh, nw, ww, c])?.f_permute([0i64, 1, 3, 5, 2, 4, 6, 7])?.f_reshape([
            -1,
            self.volume(),
            c,
        ])
    }

    /// The inverse of [`Grid::cut`]; what came from padding is dropped.
    pub(super) fn join(&self, x: &Tensor) -> std::result::Result<Tensor, TchError> {
        let (rows, _, c) = x.size3()?;
        let ([nt, nh, nw], [wt, wh, ww], [t, h, w]) = (self.counts(), self.window, self.padded);
        let b = rows / self.windows();
        let mut x = x
            .f_reshape([b, nt, nh, nw, wt, wh, ww, c])?
            .f_permute([0i64, 1, 4, 2, 5, 3, 6, 7])?
            .f_reshape([b, t, h, w, c])?;
        if self.is_shifted() {
            x = x.f_roll(self.shift, [1i64, 2, 3])?;
        }
        for axis in 0..3 {
            if self.padded[axis] != self.size[axis] {
                x = x.f_narrow(axis as i64 + 1, 0, self.size[axis])?;
            }
        }
        Ok(x)
    }

    /// What to add to the attention (windows, 1, volume, volume) so that tokens that the cyclic shift brought
    /// together do not see each other: 0 or -100. None where nothing is shifted.
    pub(super) fn mask(&self, device: Device) -> Result<Option<Tensor>> {
        if !self.is_shifted() {
            return Ok(None);
        }
        let build = || {
            let [t, h, w] = self.padded;
            let mut regions = Vec::with_capacity((t * h * w) as usize);
            for i in 0..t {
                for j in 0..h {
                    let row = 9 * self.region(0, i) + 3 * self.region(1, j);
                    regions.extend((0..w).map(|k| row + self.region(2, k)));
                }
            }
            let ([nt, nh, nw], [wt, wh, ww]) = (self.counts(), self.window);
            let regions = Tensor::f_from_slice(&regions)?
                .f_view([nt, wt, nh, wh, nw, ww])?
                .f_permute([0i64, 2, 4, 1, 3, 5])?
                .f_reshape([self.windows(), self.volume()])?
                .f_to_device(device)?;
            let apart = regions.f_unsqueeze(1)?.f_ne_tensor(&regions.f_unsqueeze(2)?)?;
            apart.f_to_kind(Kind::Float)?.f_mul_scalar(-100.0)?.f_unsqueeze(1)
        };
        build().map(Some).map_err(Error::torch("mask the shifted windows"))
    }

    fn counts(&self) -> [i64; 3] {
        [0, 1, 2].map(|a| self.padded[a] / self.window[a])
    }

    fn is_shifted(&self) -> bool {
        self.shift != [0; 3]
    }

    /// Which of an axis's three parts the shifted position `i` belongs to.
    fn region(&self, axis: usize, i: i64) -> i64 {
        let (n, w, s) = (self.padded[axis], self.window[axis], self.shift[axis]);
        if s == 0 || i < n - w {
            0
        } else if i < n - s {
            1
        } else {
            2
        }
    }
}

/// For each pair of tokens of a full window the row of the bias table that holds their offset, (N, N).
/// A clamped window uses `[:n, :n]` of it, as the reference does.
pub(super) fn relative_position_index([wt, wh, ww]: [i64; 3], device: Device) -> Result<Tensor> {
    let n = wt * wh * ww;
    let coordinates = |i: i64| [i / (wh * ww), i / ww % wh, i % ww];
    let mut index = Vec::with_capacity((n * n) as usize);
    for i in (0..n).map(coordinates) {
        for j in (0..n).map(coordinates) {
            let [dt, dh, dw] = [i[0] - j[0] + wt - 1, i[1] - j[1] + wh - 1, i[2] - j[2] + ww - 1];
            index.push((dt * (2 * wh - 1) + dh) * (2 * ww - 1) + dw);
        }
    }
    Tensor::f_from_slice(&index)
        .and_then(|t| t.f_view([n, n])?.f_to_device(device))
        .map_err(Error::torch("index the relative positions"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_axes_clamp_the_window_and_are_not_shifted() {
        let grid = Grid::new([4, 14, 7], [8, 7, 7], true);
        assert_eq!((grid.window, grid.shift), ([4, 7, 7], [0, 3, 0]));
        assert_eq!(grid.windows(), 2);
    }

    #[test]
    fn joining_undoes_cutting() {
        for (size, shifted) in [([3, 9, 15], true), ([16, 8, 7], true), ([2, 5, 5], false)] {
            let grid = Grid::new(size, [8, 7, 7], shifted);
            let x = Tensor::randn([2, size[0], size[1], size[2], 3], (Kind::Float, Device::Cpu));
            let back = grid.join(&grid.cut(&x).unwrap()).unwrap();
            assert!(back.equal(&x), "{grid:?}");
        }
    }

    #[test]
    fn the_mask_parts_only_what_the_shift_joined() {
        // One axis of 4 in windows of 2, shifted by 1: the second window holds positions 3 and 0.
        let grid = Grid { size: [1, 1, 4], padded: [1, 1, 4], window: [1, 1, 2], shift: [0, 0, 1] };
        let mask = grid.mask(Device::Cpu).unwrap().unwrap();
        assert_eq!(mask.size(), [2, 1, 2, 2]);
        let values = Vec::<f32>::try_from(mask.flatten(0, -1)).unwrap();
        assert_eq!(values, [0.0, 0.0, 0.0, 0.0, 0.0, -100.0, -100.0, 0.0]);
    }
}
