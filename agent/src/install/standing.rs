//! Whether what is to be on the host is there.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{error, info};

use super::Error;

/// Why the plugin or its configuration is not on the host, if it is not; the same for all who have it.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<Mutex<Option<String>>>);

impl Standing {
    /// What hinders the installation now.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let fault = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone()
    }

    /// Notes how an attempt to install `configuration` ended, and says in the log what is new of it.
    pub(super) fn note(&self, configuration: &Path, done: Result<(), Error>) {
        let fault = done.err().map(|e| e.to_string());
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == fault {
            return;
        }
        match &fault {
            Some(fault) => error!("{fault}; it is tried again every few seconds"),
            None => info!("{} is as it should be again", configuration.display()),
        }
        *last = fault;
    }
}
