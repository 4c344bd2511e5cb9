//! What every model is.

use crate::checkpoint::Checkpoint;
use crate::{DType, Device, LanguageModel, Result};

/// What training needs of a model, beside its loss.
pub trait Model: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Its parameters, configuration, layers and files; a head of its own has its parameters there too.
    fn core(&self) -> &LanguageModel;

    /// The same, to change.
    fn core_mut(&mut self) -> &mut LanguageModel;

    /// The model of a checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or one too many is there; if a value is not finite.
    fn load(checkpoint: &Checkpoint) -> Result<Self>;

    /// The same model on a device, to be trained.
    ///
    /// # Errors
    /// If the device has too little memory.
    fn on_device(mut self, device: Device, dtype: DType) -> Result<Self> {
        let moved = self.core().to_train(device, dtype)?;
        *self.core_mut() = moved;
        Ok(self)
    }
}

impl Model for LanguageModel {
    fn core(&self) -> &LanguageModel {
        self
    }

    fn core_mut(&mut self) -> &mut LanguageModel {
        self
    }

    fn load(checkpoint: &Checkpoint) -> Result<Self> {
        LanguageModel::load(checkpoint)
    }
}
