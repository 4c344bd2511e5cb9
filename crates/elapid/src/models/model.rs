//! The trait of models.

use crate::checkpoint::Checkpoint;
use crate::{DType, Device, LanguageModel, Result};

/// What training needs of a model besides its loss.
pub trait Model: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Its parameters, configuration, layers and files; the parameters of its own head are there too.
    fn core(&self) -> &LanguageModel;

    /// The same, mutable.
    fn core_mut(&mut self) -> &mut LanguageModel;

    /// The model of a checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected, or of another shape; if a value is not finite.
    fn load(checkpoint: &Checkpoint) -> Result<Self>;

    /// The same model on a device, for training.
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
