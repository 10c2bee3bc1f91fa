//! Taking a checkpoint: copy this rank's share at the step boundary, pack and upload it behind the next steps.

use super::layout::{self, FileEntry, Header, Part};
use crate::{Error, Result};
use bytes::Bytes;
use proto::v1::{CheckpointFile, CheckpointShard};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::{collections::HashSet, sync::Arc};
use storage::{Bandwidth, Location};
use tch::{Kind, Tensor};

/// One rank's share of a checkpoint, copied out of the model: training may go on at once.
pub struct Snapshot {
    header: Header,
    rank: u32,
    files: Vec<Share>,
}

/// One rank's share as the bytes of its files, with their digests. Cheap to clone.
#[derive(Clone)]
pub struct Packed {
    pub header: Header,
    pub rank: u32,
    pub files: Arc<[PackedFile]>,
}

/// A safetensors file.
pub struct PackedFile {
    /// Relative to the step's folder.
    pub key: String,
    /// Its bytes, in order.
    pub chunks: Vec<Bytes>,
    pub bytes: u64,
    pub sha256: String,
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

    /// Lays the files out and digests them; large ones take seconds.
    pub async fn pack(self) -> Result<Packed> {
        let (header, rank) = (self.header, self.rank);
        let (step, world, attempt) = (header.step, header.world_size, layout::attempt(header.generation));
        let pack = move |share: Share| {
            let key = layout::file_key(&attempt, share.part, rank, world);
            let chunks = into_safetensors(share.tensors)?;
            let mut hasher = Sha256::new();
            chunks.iter().for_each(|c| hasher.update(c));
            let bytes = chunks.iter().map(|c| c.len() as u64).sum();
            Ok::<_, String>(PackedFile { key, chunks, bytes, sha256: storage::hex(&hasher.finalize()) })
        };
        // Not on the async threads.
        let packed = tokio::task::spawn_blocking(move || self.files.into_iter().map(pack).collect());
        let packed: std::result::Result<Vec<_>, String> = match packed.await {
            Ok(packed) => packed,
            Err(e) => Err(format!("its digests were not finished: {e}")),
        };
        let failed = |why| Error::Checkpoint { url: layout::step_folder(step), why };
        Ok(Packed { header, rank, files: packed.map_err(failed)?.into() })
    }

    /// As [`Packed::upload`].
    pub async fn upload(self, run: &Location) -> Result<CheckpointShard> {
        self.pack().await?.upload(run, None).await
    }
}

impl Packed {
    /// As a manifest lists them.
    pub fn entries(&self) -> Vec<FileEntry> {
        let entry =
            |f: &PackedFile| FileEntry { key: f.key.clone(), bytes: f.bytes, sha256: f.sha256.clone() };
        self.files.iter().map(entry).collect()
    }

    /// Uploads this rank's files below `run`, and returns the report for the coordinator, who
    /// commits the checkpoint once it has all ranks'. No faster than `limit`.
    pub async fn upload(self, run: &Location, limit: Option<&Bandwidth>) -> Result<CheckpointShard> {
        let Header { step, world_size, generation, .. } = self.header;
        let folder = run.join(&layout::step_folder(step));
        let mut files = vec![];
        for PackedFile { key, chunks, bytes, sha256 } in self.files.iter() {
            folder.put_chunks_within(key, chunks.clone(), limit).await?;
            files.push(CheckpointFile { key: key.clone(), bytes: *bytes, sha256: sha256.clone() });
        }
        let header_json = match self.rank {
            0 => serde_json::to_string(&self.header)
                .map_err(|e| Error::Checkpoint { url: folder.url().into(), why: e.to_string() })?,
            _ => String::new(),
        };
        let attempt = layout::attempt(generation);
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
