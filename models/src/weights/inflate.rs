//! Tensors of images made to fit a network over space and time.

use crate::{Error, Result};
use tch::{Kind, TchError, Tensor};

/// What was done to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// Repeated over time.
    Inflated,
    /// Zeros for the input channels that it lacked.
    Padded,
    /// A bias table made for another window.
    Table,
}

/// `tensor` in `shape`, or `None` where no rule leads there. `image`: of a network for single images.
/// `window`: the target's (t, h, w), if it has one.
pub(super) fn fit(
    name: &str,
    tensor: &Tensor,
    shape: &[i64],
    image: bool,
    window: Option<[i64; 3]>,
) -> Result<Option<(Tensor, Change)>> {
    if tensor.size() == shape {
        return Ok(Some((tensor.shallow_clone(), Change::None)));
    }
    let fitted = match (&tensor.size()[..], shape, window) {
        (&[..], &[_, _, _, _, _], _) if image => kernel(name, tensor, shape),
        (&[_, heads], &[rows, same], Some(window)) if heads == same && name.ends_with("bias_table") => {
            let [t, h, w] = window.map(|n| 2 * n - 1);
            match t * h * w == rows {
                true => bias_table(tensor, [t, h, w], image),
                false => Ok(None),
            }
        }
        _ => Ok(None),
    };
    fitted.map_err(Error::torch(format!("fit {name}")))
}

/// The kernel of an image, (out, in, h, w), over time: repeated t times and divided by t, so that a clip of equal
/// frames gives what the image gave (Carreira and Zisserman 2017, section 2.4). In SlowFast's slow pathway
/// the channels of the fast one come after its own and start at zero (mmaction2,
/// `resnet3d_slowfast.py::_inflate_conv_params`).
fn kernel(
    name: &str,
    image: &Tensor,
    shape: &[i64],
) -> std::result::Result<Option<(Tensor, Change)>, TchError> {
    let (&[outputs, inputs, height, width], &[o, i, t, h, w]) = (&image.size()[..], shape) else {
        return Ok(None);
    };
    let lateral = name.contains(".multipathway_blocks.0.") && inputs < i;
    if [outputs, height, width] != [o, h, w] || (inputs != i && !lateral) {
        return Ok(None);
    }
    let mut kernel = image.f_unsqueeze(2)?.f_repeat([1, 1, t, 1, 1])?.f_div_scalar(t as f64)?;
    if lateral {
        let zeros = Tensor::f_zeros([o, i - inputs, t, h, w], (kernel.kind(), kernel.device()))?;
        kernel = Tensor::f_cat(&[kernel, zeros], 1)?;
    }
    let change = match (lateral, t) {
        (true, _) => Change::Padded,
        (false, 1) => Change::None,
        (false, _) => Change::Inflated,
    };
    Ok(Some((kernel, change)))
}

/// A table of relative positions, (offsets, heads), for a window whose axes have `to` = 2n - 1 offsets each.
/// An image's, which is square, is resized bicubically where its window differs and then repeated for
/// every offset in time (mmaction2, `swin.py::inflate_weights`). A video's of the same window in space is
/// interpolated linearly over time.
fn bias_table(
    table: &Tensor,
    [t, h, w]: [i64; 3],
    image: bool,
) -> std::result::Result<Option<(Tensor, Change)>, TchError> {
    let (rows, heads) = table.size2()?;
    // Heads first, so that the offsets are the axes to resize.
    let by_head = table.f_to_kind(Kind::Float)?.f_transpose(0, 1)?;
    let resized = if image {
        let side = (rows as f64).sqrt().round() as i64;
        if side * side != rows {
            return Ok(None);
        }
        let square = by_head.f_reshape([1, heads, side, side])?;
        let square = match [side, side] == [h, w] {
            true => square,
            false => square.f_upsample_bicubic2d([h, w], false, None, None)?,
        };
        square.f_reshape([heads, 1, h * w])?.f_repeat([1, t, 1])?
    } else {
        if rows % (h * w) != 0 {
            return Ok(None);
        }
        let over_time = by_head.f_reshape([heads, rows / (h * w), h * w])?.f_transpose(1, 2)?;
        over_time.f_upsample_linear1d([t], true, None)?.f_transpose(1, 2)?
    };
    let table = resized.f_reshape([heads, t * h * w])?.f_transpose(0, 1)?.f_contiguous()?;
    Ok(Some((table, Change::Table)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn random(shape: &[i64]) -> Tensor {
        tch::manual_seed(5);
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn fitted(name: &str, from: &Tensor, shape: &[i64], image: bool) -> Option<(Tensor, Change)> {
        fit(name, from, shape, image, Some([2, 3, 3])).unwrap()
    }

    #[test]
    fn a_kernel_over_time_sums_to_the_image_s() {
        let image = random(&[4, 3, 7, 7]);
        let (kernel, change) = fitted("blocks.0.conv.weight", &image, &[4, 3, 5, 7, 7], true).unwrap();
        assert_eq!(change, Change::Inflated);
        assert!(
            (kernel.sum_dim_intlist([2i64].as_slice(), false, Kind::Float) - &image)
                .abs()
                .max()
                .double_value(&[])
                < 1e-6
        );
        assert!(kernel.select(2, 0).equal(&kernel.select(2, 4)));
        let (same, change) = fitted("blocks.0.conv.weight", &image, &[4, 3, 1, 7, 7], true).unwrap();
        assert!(change == Change::None && same.select(2, 0).equal(&image));
        assert!(fitted("blocks.0.conv.weight", &image, &[4, 3, 5, 3, 3], true).is_none());
        assert!(fitted("blocks.0.conv.weight", &image, &[4, 5, 1, 7, 7], true).is_none());
    }

    #[test]
    fn lateral_channels_start_at_zero() {
        let image = random(&[4, 3, 1, 1]);
        let name = "blocks.1.multipathway_blocks.0.res_blocks.0.branch2.conv_a.weight";
        let (kernel, change) = fitted(name, &image, &[4, 5, 1, 1, 1], true).unwrap();
        assert_eq!(change, Change::Padded);
        assert!(kernel.narrow(1, 0, 3).squeeze_dim(2).equal(&image));
        assert_eq!(kernel.narrow(1, 3, 2).abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn tables_are_repeated_over_time() {
        let image = random(&[25, 2]);
        let (table, change) = fitted("attn.relative_position_bias_table", &image, &[75, 2], true).unwrap();
        assert_eq!(change, Change::Table);
        for offset in 0..3 {
            assert!(table.narrow(0, 25 * offset, 25).equal(&image), "offset {offset} in time");
        }
        // torch.nn.functional.interpolate(torch.arange(9.).repeat(9, 1)[None, None], (5, 5), mode="bicubic")[0, 0, 0]
        let expected = [0.3160, 2.2480, 4.0000, 5.7520, 7.6840];
        let ramp = Tensor::arange(9, (Kind::Float, Device::Cpu)).repeat([9, 1]).reshape([81, 1]);
        let (table, _) = fitted("attn.relative_position_bias_table", &ramp, &[75, 1], true).unwrap();
        for (i, expected) in expected.into_iter().enumerate() {
            assert!((table.double_value(&[i as i64, 0]) - expected).abs() < 1e-4, "{i}");
        }
        assert!(fitted("attn.relative_position_bias_table", &random(&[24, 2]), &[75, 2], true).is_none());
    }

    #[test]
    fn tables_of_videos_are_stretched_over_time() {
        // One offset in time (a window of one frame) for three.
        let short = random(&[25, 2]);
        let (table, _) = fitted("attn.relative_position_bias_table", &short, &[75, 2], false).unwrap();
        assert!(table.narrow(0, 50, 25).equal(&short));
        let five = Tensor::cat(
            &(0..5).map(|i| Tensor::full([25, 1], i, (Kind::Float, Device::Cpu))).collect::<Vec<_>>(),
            0,
        );
        let (table, _) = fitted("attn.relative_position_bias_table", &five, &[75, 1], false).unwrap();
        let steps = [0, 25, 50].map(|row| table.double_value(&[row, 0]));
        assert_eq!(steps, [0.0, 2.0, 4.0]);
    }
}
