//! Files in the safetensors format, read tensor by tensor.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{FileError, RegularFile};

/// A safetensors file written by elapid (a state or an optimiser's moments), open for reading.
///
/// Checkpoints, which may come from anywhere, have a separate reader with more detailed errors.
#[derive(Debug)]
pub struct TensorFile {
    file: RegularFile,
    header: Metadata,
    notes: HashMap<String, String>,
    /// Offset of the tensors' bytes.
    start: u64,
}

impl TensorFile {
    /// Opens a file and reads its header. Every tensor is inside the file and has the size of its shape.
    ///
    /// # Errors
    /// If it is not a regular file, cannot be read, or is not a safetensors file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        /// Maximum size of a header in the format, in bytes.
        const MAX_HEADER: u64 = 100_000_000;
        let file = RegularFile::open(path)?;
        let damaged = |what: &str| FileError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let after = file.len().checked_sub(8).ok_or_else(|| damaged("it has fewer than 8 bytes"))?;
        let mut length = [0; 8];
        file.read_at(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > after.min(MAX_HEADER) {
            return Err(damaged("its header is cut short"));
        }
        let header = file.range(8..8 + length)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(&error.to_string()))?;
        for (name, info) in header.tensors() {
            if !fits(info, after - length) {
                return Err(damaged(&format!("tensor `{name}` is not where the header says")));
            }
        }
        let notes = header.metadata().clone().unwrap_or_default();
        Ok(Self { file, header, notes, start: 8 + length })
    }

    /// The notes in the header.
    pub fn notes(&self) -> &HashMap<String, String> {
        &self.notes
    }

    /// The names of its tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Type and shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.header.info(name).map(|info| (info.dtype, info.shape.as_slice()))
    }

    /// The elements of a tensor of type F32.
    ///
    /// # Errors
    /// If there is none of this name and type, the file became shorter, or there is no memory.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, FileError> {
        let Some(info) = self.header.info(name).filter(|info| info.dtype == Dtype::F32) else {
            let what = format!("it has no tensor `{name}` of type F32");
            return Err(FileError::Damaged { path: self.file.path().to_owned(), what });
        };
        let range = self.start + info.data_offsets.0 as u64..self.start + info.data_offsets.1 as u64;
        let mut elements = self.file.room_for((info.data_offsets.1 - info.data_offsets.0) / 4)?;
        self.file.windows(range, |part| {
            elements.extend(part.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
        })?;
        Ok(elements)
    }
}

fn fits(info: &TensorInfo, available: u64) -> bool {
    let (from, to) = info.data_offsets;
    let elements = info.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
    from <= to && to as u64 <= available && bits.is_some_and(|bits| bits.is_multiple_of(8) && bits / 8 == to - from)
}

impl RegularFile {
    /// Bytes read at a time, small enough to stay in a core's cache until they are decoded.
    const WINDOW: u64 = 256 << 10;

    /// The bytes of a short range.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); if there is no memory.
    pub fn range(&self, range: Range<u64>) -> Result<Vec<u8>, FileError> {
        let mut bytes = self.room_for(usize::try_from(range.end - range.start).unwrap_or(usize::MAX))?;
        bytes.resize(bytes.capacity(), 0);
        self.read_at(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Calls `take` with one part of a range after another; all but the last have a multiple of 8 bytes.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn windows(&self, range: Range<u64>, mut take: impl FnMut(&[u8])) -> Result<(), FileError> {
        let mut window = vec![0; Self::WINDOW.min(range.end - range.start) as usize];
        let mut at = range.start;
        while at < range.end {
            let part = &mut window[..Self::WINDOW.min(range.end - at) as usize];
            self.read_at(at, part)?;
            take(part);
            at += part.len() as u64;
        }
        Ok(())
    }

    /// An empty vector with room for `count` elements of this file.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn room_for<T>(&self, count: usize) -> Result<Vec<T>, FileError> {
        let mut vec = Vec::new();
        vec.try_reserve_exact(count).map_err(|_| FileError::Memory {
            path: self.path().to_owned(),
            bytes: (count as u64).saturating_mul(size_of::<T>() as u64),
        })?;
        Ok(vec)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn file(dir: &Path, header: &str, data: &[u8]) -> PathBuf {
        let path = dir.join("x");
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn tensors_are_read_in_windows() {
        let dir = tempfile::tempdir().unwrap();
        let want: Vec<f32> = (0..200_000).map(|i| i as f32).collect();
        let data: Vec<u8> = [0_u8; 4].into_iter().chain(want.iter().flat_map(|x| x.to_le_bytes())).collect();
        let header = r#"{"__metadata__":{"a":"b"},"n":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                         "x":{"dtype":"F32","shape":[2,100000],"data_offsets":[4,800004]}}"#;
        let path = file(dir.path(), header, &data);
        let tensors = TensorFile::open(&path).unwrap();
        assert_eq!(tensors.notes()["a"], "b");
        assert_eq!(tensors.shape("x"), Some((Dtype::F32, [2, 100_000].as_slice())));
        assert_eq!(tensors.f32("x").unwrap(), want);
        for name in ["n", "y"] {
            assert!(matches!(tensors.f32(name), Err(FileError::Damaged { .. })));
        }
        fs::File::options().write(true).open(&path).unwrap().set_len(400_000).unwrap();
        assert!(matches!(tensors.f32("x"), Err(FileError::Shortened { .. })));
    }

    #[test]
    fn a_header_is_believed_only_if_it_fits() {
        let dir = tempfile::tempdir().unwrap();
        let open = |header: &str, data: usize| TensorFile::open(&file(dir.path(), header, &vec![0; data]));
        let tensor = |shape: &str, from: &str, to: &str| {
            format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
        };
        assert!(open(&tensor("[2]", "0", "8"), 8).is_ok());
        for (shape, from, to) in [
            ("[2]", "0", "9"),
            ("[2]", "8", "0"),
            ("[2]", "4", "12"),
            ("[4611686018427387904,4]", "0", "0"),
            ("[2]", "18446744073709551608", "18446744073709551615"),
            ("[-1]", "0", "4"),
        ] {
            let error = open(&tensor(shape, from, to), 8).unwrap_err();
            assert!(matches!(error, FileError::Damaged { .. }), "{shape} {from} {to}: {error}");
        }
        fs::write(dir.path().join("x"), [0xff; 9]).unwrap();
        assert!(matches!(TensorFile::open(&dir.path().join("x")), Err(FileError::Damaged { .. })));
        fs::write(dir.path().join("x"), [0; 7]).unwrap();
        assert!(matches!(TensorFile::open(&dir.path().join("x")), Err(FileError::Damaged { .. })));
    }
}
