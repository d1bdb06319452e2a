//! The status of the installation on the host.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{error, info};

use super::Error;

/// Why the plugin or its configuration is not installed, if so. All clones share it.
#[derive(Clone, Debug, Default)]
pub struct InstallStatus(Arc<Mutex<Option<String>>>);

impl InstallStatus {
    /// Returns why the installation fails now.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let fault = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone()
    }

    /// Records the result of an attempt to install `configuration`, and logs it if it has changed.
    pub(super) fn record(&self, configuration: &Path, done: Result<(), Error>) {
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
