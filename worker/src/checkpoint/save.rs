//! Taking a checkpoint: copy this rank's share at the step boundary, upload it behind the next steps.

use super::layout::{self, Header, Part};
use crate::{Error, Result};
use bytes::Bytes;
use proto::v1::{CheckpointFile, CheckpointShard};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use storage::{Bandwidth, Location};
use tch::{Kind, Tensor};

/// One rank's share of a checkpoint, copied out of the model: training may go on at once.
pub struct Snapshot {
    header: Header,
    rank: u32,
    files: Vec<Share>,
}

/// What goes into one safetensors file.
struct Share {
    part: Part,
    tensors: Vec<Copied>,
}

struct Copied {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Bytes,
}

/// One tensor of a checkpoint.
pub struct Entry {
    pub part: Part,
    /// Rank 0's alone: buffers, for its running statistics are the ones that count, as in PyTorch's DDP.
    pub rank_zero: bool,
    pub name: String,
    pub tensor: Tensor,
}

impl Entry {
    /// The model's state dict.
    pub fn of_model(model: &models::Model) -> Vec<Self> {
        let tensors = model.tensors();
        let trained: HashSet<&str> =
            tensors.iter().filter(|t| t.role != models::Role::Buffer).map(|t| t.name.as_str()).collect();
        let entry = |(name, tensor): (String, Tensor)| Self {
            part: Part::Model,
            rank_zero: !trained.contains(name.as_str()),
            name,
            tensor,
        };
        model.state_dict().into_iter().map(entry).collect()
    }

    /// Tensors of another part.
    pub fn of_part(part: Part, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Vec<Self> {
        tensors.into_iter().map(|(name, tensor)| Self { part, rank_zero: false, name, tensor }).collect()
    }
}

/// Copies rank `rank`'s share of `entries` to host memory: what is not rank 0's alone is dealt to the
/// ranks by size. Call it on every rank at the same step boundary with the same names, shapes and `header`.
pub fn snapshot(entries: Vec<Entry>, header: Header, rank: u32) -> Result<Snapshot> {
    let fixed: Vec<bool> = entries.iter().map(|e| e.rank_zero).collect();
    let bytes = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
    let sizes: Vec<u64> = entries.iter().map(|e| bytes(&e.tensor)).collect();
    let owners = layout::deal(&sizes, &fixed, header.world_size);
    let mut files = vec![];
    for part in Part::ALL {
        if !entries.iter().any(|e| e.part == part) {
            continue;
        }
        let mine = entries.iter().zip(&owners).filter(|(e, owner)| e.part == part && **owner == rank);
        let tensors = mine.map(|(e, _)| copy(&e.name, &e.tensor)).collect::<Result<Vec<_>>>()?;
        files.push(Share { part, tensors });
    }
    Ok(Snapshot { header, rank, files })
}

impl Snapshot {
    /// Bytes that this rank will upload, headers aside.
    pub fn bytes(&self) -> u64 {
        self.files.iter().flat_map(|f| &f.tensors).map(|t| t.data.len() as u64).sum()
    }

    /// Uploads this rank's files below `run`, and returns the report for the coordinator, who
    /// commits the checkpoint once it has all ranks'. No faster than `limit`.
    pub async fn upload(self, run: &Location, limit: Option<&Bandwidth>) -> Result<CheckpointShard> {
        let Header { step, world_size, generation, .. } = self.header;
        let attempt = layout::attempt(generation);
        let folder = run.join(&layout::step_folder(step));
        let mut files = vec![];
        for share in self.files {
            let key = layout::file_key(&attempt, share.part, self.rank, world_size);
            let url = folder.url_of(&key);
            // Digesting a large file takes seconds: not on the async threads.
            let done = tokio::task::spawn_blocking(move || {
                let chunks = into_safetensors(share.tensors)?;
                let mut hasher = Sha256::new();
                chunks.iter().for_each(|c| hasher.update(c));
                Ok((chunks, storage::hex(&hasher.finalize())))
            });
            let failed = |why: String| Error::Checkpoint { url, why };
            let (chunks, sha256) = match done.await {
                Ok(Ok(done)) => done,
                Ok(Err(e)) => return Err(failed(e)),
                Err(e) => return Err(failed(format!("its digest was not finished: {e}"))),
            };
            let bytes = chunks.iter().map(|c| c.len() as u64).sum();
            folder.put_chunks_within(&key, chunks, limit).await?;
            files.push(CheckpointFile { key, bytes, sha256 });
        }
        let header_json = match self.rank {
            0 => serde_json::to_string(&self.header)
                .map_err(|e| Error::Checkpoint { url: folder.url().into(), why: e.to_string() })?,
            _ => String::new(),
        };
        Ok(CheckpointShard { generation, step, rank: self.rank, world_size, attempt, files, header_json })
    }
}

/// The bytes of a safetensors file with these tensors, in pieces.
pub fn safetensors(tensors: &[(String, Tensor)]) -> Result<Vec<Bytes>> {
    let copied = tensors.iter().map(|(name, t)| copy(name, t)).collect::<Result<_>>()?;
    into_safetensors(copied).map_err(|why| Error::Usage(format!("write the tensors as safetensors: {why}")))
}

/// Length and header, then each tensor as it was copied, in the order of the format's own writers: by alignment,
/// then by name.
fn into_safetensors(mut tensors: Vec<Copied>) -> std::result::Result<Vec<Bytes>, String> {
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let mut at = 0;
    let mut infos = vec![];
    for t in &tensors {
        let data_offsets = (at, at + t.data.len());
        at = data_offsets.1;
        infos.push((t.name.clone(), TensorInfo { dtype: t.dtype, shape: t.shape.clone(), data_offsets }));
    }
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    let metadata = Metadata::new(metadata, infos).map_err(|e| e.to_string())?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    // The data begins on a multiple of eight.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(std::iter::once(header.into()).chain(tensors.into_iter().map(|t| t.data)).collect())
}

/// A tensor's values in standard (row-major) order, whatever its device and memory format.
fn copy(name: &str, tensor: &Tensor) -> Result<Copied> {
    let kind = tensor.f_kind()?;
    let dtype = dtype_of(kind)
        .ok_or_else(|| Error::Usage(format!("save {name}: safetensors has no type for {kind:?}")))?;
    let mut data = vec![0u8; tensor.numel() * kind.elt_size_in_bytes()];
    tensor.f_detach()?.f_copy_data_u8(&mut data, tensor.numel())?;
    let shape = tensor.size().iter().map(|&n| n as usize).collect();
    Ok(Copied { name: name.into(), dtype, shape, data: data.into() })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        _ => return None,
    })
}
