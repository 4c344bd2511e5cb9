//! The header of a safetensors file: 8 bytes of length, JSON, then the tensors' bytes.
//!
//! The `safetensors` crate can parse it too, but its errors name neither sizes nor, mostly, tensors, and it adds offsets
//! from the file without looking for overflow.

use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value;

use super::error::{CheckpointError, Result};
use super::reader::Bytes;
use crate::json;

/// Maximum size of a header in the format, in bytes.
const MAX_HEADER: usize = 100_000_000;

/// A tensor as a file describes it.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes, from the start of the file.
    pub(super) range: Range<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

const FETCH_AGAIN: &str = "fetch or save the file again";

/// Reads the header of a file. Every returned range is inside the file and matches its tensor's shape and dtype; together
/// they cover everything after the header without overlapping.
pub(super) fn read(file: &str, bytes: &Bytes) -> Result<Vec<Described>> {
    let wrong = |wanted: String, got: String| CheckpointError::format(file, wanted, got, FETCH_AGAIN);
    let Some(rest) = bytes.len().checked_sub(8) else {
        return Err(wrong("a safetensors file, at least 8 bytes".into(), format!("{} bytes", bytes.len())));
    };
    let length = bytes.range(0..8)?.iter().rev().fold(0, |length, &byte| length << 8 | u64::from(byte));
    let Some(header) = usize::try_from(length).ok().filter(|&length| length <= rest) else {
        let wanted = format!("a header of {length} bytes, as the first 8 bytes say");
        return Err(wrong(wanted, format!("{rest} bytes after them")));
    };
    if header > MAX_HEADER {
        return Err(wrong(format!("a header of at most {MAX_HEADER} bytes"), format!("{length}")));
    }
    let (start, available) = (8 + header, rest - header);
    let json = json::parse(&bytes.range(8..start)?).map_err(|e| wrong("a header in JSON".into(), e.to_string()))?;
    let Value::Object(entries) = json else {
        return Err(wrong("a header that is a JSON object".into(), "another value".into()));
    };

    let mut tensors = Vec::new();
    for (name, value) in entries {
        if name != "__metadata__" {
            tensors.push(describe(file, name, value, start, available)?);
        }
    }
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut end = start;
    for tensor in &tensors {
        if tensor.range.start != end {
            return Err(CheckpointError::tensor(
                file,
                &tensor.name,
                format_args!("to begin at byte {}, where the tensor before it ends", end - start),
                tensor.range.start - start,
                FETCH_AGAIN,
            ));
        }
        end = tensor.range.end;
    }
    if end != bytes.len() {
        return Err(wrong(format!("{} bytes of tensors, as the header says", end - start), available.to_string()));
    }
    Ok(tensors)
}

fn describe(file: &str, name: String, value: Value, start: usize, available: usize) -> Result<Described> {
    let wrong = |wanted: String, got: String| CheckpointError::tensor(file, &name, wanted, got, FETCH_AGAIN);
    let info = Info::deserialize(value)
        .map_err(|e| wrong("a known dtype, a shape and two data_offsets".into(), e.to_string()))?;
    let (from, to) = info.data_offsets;
    if from > to || to > available {
        let wanted = format!("bytes inside the {available} that the file has for tensors");
        return Err(wrong(wanted, format!("bytes {from} to {to}")));
    }
    let elements = info.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
    if bits.is_none_or(|bits| !bits.is_multiple_of(8) || bits / 8 != to - from) {
        let wanted = format!("as many bytes as {} numbers {:?} take", info.dtype, info.shape);
        return Err(wrong(wanted, format!("{} bytes", to - from)));
    }
    // `start + to` is at most the length of the file.
    Ok(Described { name, dtype: info.dtype, shape: info.shape, range: start + from..start + to })
}
