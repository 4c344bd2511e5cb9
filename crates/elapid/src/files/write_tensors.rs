//! Writing tensors in the safetensors format.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{FileError, atomic_write};

/// Elements converted to bytes at a time.
const PART: usize = 4096;

/// A tensor of f32 to write, with its elements by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Elements {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: Vec<f32>,
}

/// Writes a safetensors file, completely or not at all. Equal notes and tensors give equal bytes: notes are ordered by key,
/// tensors keep their order.
///
/// The `safetensors` crate keeps notes in a hash map, whose order differs from process to process.
///
/// # Errors
/// If the file cannot be written; an older file of that name is then unchanged.
pub fn write_tensors(path: &Path, notes: &BTreeMap<String, String>, tensors: &[Elements]) -> Result<(), FileError> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!(notes))]);
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + 4 * tensor.data.len();
        header
            .insert(tensor.name.clone(), json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Tensors begin at a multiple of 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    atomic_write(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut bytes = Vec::with_capacity(4 * PART);
        for part in tensors.iter().flat_map(|tensor| tensor.data.chunks(PART)) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|x| x.to_le_bytes()));
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_are_equal_bytes_that_the_reference_reads() {
        let dir = tempfile::tempdir().unwrap();
        let keys = ["step", "version", "best", "tokens", "format", "data", "weights"];
        let notes: BTreeMap<String, String> = keys.iter().map(|key| ((*key).to_owned(), key.to_uppercase())).collect();
        let tensor = |name: &str, count: usize| Elements {
            name: name.into(),
            shape: vec![1, count],
            data: (0..count).map(|i| i as f32).collect(),
        };
        let tensors = [tensor("z", 5), tensor("a", 0), tensor("m", 9000)];
        let path = dir.path().join("x");
        write_tensors(&path, &notes, &tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let header = String::from_utf8_lossy(&bytes[8..]).into_owned();
        let places: Vec<usize> = notes.keys().map(|key| header.find(&format!("{key:?}")).unwrap()).collect();
        assert!(places.is_sorted(), "{places:?}");
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(reference.tensor("m").unwrap().shape(), [1, 9000]);
        assert_eq!(reference.tensor("z").unwrap().data()[4..8], 1f32.to_le_bytes());
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["best"], "BEST");
    }
}
