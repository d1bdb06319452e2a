//! The connection to the API server.

use std::{path::Path, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// Silence on a connection after which it is given up: a watch says something (a bookmark) every
/// minute, so a longer silence means that nobody is there any more.
const SILENCE: Duration = Duration::from_secs(150);

/// A connection that does not come about in this time will not.
const CONNECT: Duration = Duration::from_secs(5);

/// There is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig file.
    #[error("the kubeconfig {path} cannot be used: {source}")]
    Kubeconfig {
        /// Which.
        path: String,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// What a pod is given.
    #[error(
        "no API server: not in a pod ({0}); give --kubeconfig FILE, or --manifests DIR without --kube"
    )]
    InCluster(kube::config::InClusterError),
    /// Certificates, most likely.
    #[error("prepare the connection to the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// Whether this process is a pod's.
#[must_use]
pub fn in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// A client by `kubeconfig`, or by what the kubelet gives a pod. Does not connect yet.
///
/// # Errors
/// When there is no configuration, or it cannot be used.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let mut config = match kubeconfig {
        Some(path) => {
            let fault = |source| Error::Kubeconfig {
                path: path.display().to_string(),
                source,
            };
            let file = Kubeconfig::read_from(path).map_err(fault)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(fault)?
        }
        None => Config::incluster().map_err(Error::InCluster)?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).map_err(|e| Error::Client(Box::new(e)))
}
