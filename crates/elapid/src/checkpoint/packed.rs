//! Weights that a file has in a stored form, under elapid's own name with the form after a dot: `NAME.int8`.
//!
//! They are read into place as they are. A file is not mapped: one that another process cuts short is an error.

use elapid_kernels::packed::{Form, Packed};
use safetensors::Dtype;

use super::error::{CheckpointError, Result};
use super::header::Described;
use super::reader::{Bytes, Checkpoint, Entry, MISSING};
use crate::params::Wanted;

const CONVERT_AGAIN: &str = "convert the model again";

/// The parameter and the form that a tensor of a file has by its name; none if it is a tensor of numbers.
pub(super) fn split(tensor: &Described) -> Option<(&str, Form)> {
    let (name, form) = tensor.name.rsplit_once('.')?;
    form.parse().ok().filter(|_| tensor.dtype == Dtype::U8).map(|form| (name, form))
}

impl Checkpoint {
    /// The form of the largest weight in a stored form, if there is one.
    pub fn form(&self) -> Option<Form> {
        self.packed.values().max_by_key(|(_, entry)| entry.range.len()).map(|(form, _)| *form)
    }

    /// The form in which a parameter is stored, if it is in one.
    pub fn form_of(&self, name: &str) -> Option<Form> {
        self.packed.get(name).map(|(form, _)| *form)
    }

    /// A parameter in its stored form; none if the file has it as numbers.
    ///
    /// # Errors
    /// If its size differs, it has values that are not finite, or the file became shorter.
    pub fn packed(&self, wanted: &Wanted<'_>) -> crate::Result<Option<Packed>> {
        let Some((form, entry)) = self.packed.get(wanted.name) else { return Ok(None) };
        let &[n, k] = wanted.shape else { return Err(self.wrong_size(entry, *form, wanted.shape).into()) };
        self.check_packed(*form, entry, wanted.shape)?;
        let file = &self.files[entry.file];
        let packed = Packed::read_with(*form, (n, k), |bytes| -> crate::Result<()> {
            match &file.bytes {
                Bytes::File(from) => from.read_at(entry.range.start as u64, bytes).map_err(CheckpointError::from)?,
                Bytes::Static(from) => bytes.copy_from_slice(&from[entry.range.clone()]),
            }
            Ok(())
        })?;
        if !packed.is_finite() {
            let (wanted, got) = ("finite values", "some that are not");
            return Err(CheckpointError::tensor(&file.name, &entry.stored, wanted, got, CONVERT_AGAIN).into());
        }
        Ok(Some(packed))
    }

    /// Checks the size of a weight in a stored form.
    pub(super) fn check_packed(&self, form: Form, entry: &Entry, shape: &[usize]) -> Result<()> {
        let fits = matches!(*shape, [n, k] if Packed::size(form, (n, k)) == Some(entry.range.len()));
        if fits { Ok(()) } else { Err(self.wrong_size(entry, form, shape)) }
    }

    fn wrong_size(&self, entry: &Entry, form: Form, shape: &[usize]) -> CheckpointError {
        let wanted = format!("as many bytes as {shape:?} takes as {form}");
        let file = &self.files[entry.file].name;
        CheckpointError::tensor(file, &entry.stored, wanted, format_args!("{} bytes", entry.range.len()), MISSING)
    }
}
