//! Tensors as they lie in memory.

use crate::{Error, Result};
use tch::{Device, Tensor};

/// A view of `t` whose dimensions go from the outermost in memory to the innermost, and which dimension of `t` each is:
/// contiguous, if `t` has no gaps. Dimensions of size 1, whose strides mean nothing, come last.
pub fn as_stored(t: &Tensor) -> Result<(Tensor, Vec<i64>)> {
    let (size, stride) = (t.size(), t.stride());
    let mut order: Vec<usize> = (0..size.len()).collect();
    order.sort_by_key(|&d| (size[d] <= 1, std::cmp::Reverse(stride[d])));
    let order: Vec<i64> = order.into_iter().map(|d| d as i64).collect();
    let view = t.f_permute(&order).map_err(|e| Error::of_torch("permute a tensor", e))?;
    Ok((view, order))
}

/// Reads the bytes of a contiguous tensor in host memory. Nobody may write to it meanwhile.
pub fn with_bytes<T>(t: &Tensor, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
    let doing = "read a tensor's bytes";
    if t.device() != Device::Cpu || !t.is_contiguous() {
        return Err(Error::Other { doing: doing.into(), why: "it is not contiguous in host memory".into() });
    }
    let kind = t.f_kind().map_err(|e| Error::of_torch(doing, e))?;
    let bytes = t.numel() * kind.elt_size_in_bytes();
    if bytes == 0 {
        return Ok(read(&[]));
    }
    // Safety: a contiguous tensor's elements lie side by side from its pointer on, and `t` keeps them.
    Ok(read(unsafe { std::slice::from_raw_parts(t.data_ptr() as *const u8, bytes) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn a_tensor_in_any_order_is_read_as_it_lies() {
        let plain = Tensor::arange(24, (Kind::Uint8, Device::Cpu)).reshape([2, 3, 1, 4]);
        let turned = plain.permute([3, 2, 0, 1]);
        for t in [&plain, &turned] {
            let (stored, _) = as_stored(t).unwrap();
            let bytes = with_bytes(&stored, <[u8]>::to_vec).unwrap();
            assert_eq!(bytes, (0..24).collect::<Vec<u8>>());
        }
        assert_eq!(as_stored(&plain).unwrap().1, [0, 1, 3, 2]);
        assert_eq!(as_stored(&turned).unwrap().1, [2, 3, 0, 1]);
        assert!(with_bytes(&turned, |_| ()).is_err());
        assert_eq!(with_bytes(&plain.narrow(0, 0, 0), <[u8]>::len).unwrap(), 0);
    }
}
