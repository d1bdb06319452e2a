//! The connection to the API server.

use std::{path::Path, time::Duration};

use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::calls::ApiCalls;

/// The silence after which a connection is closed: a watch sends something (a bookmark) every
/// minute, so a longer silence means a dead peer.
const SILENCE: Duration = Duration::from_secs(150);

/// The timeout for a new connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Why no client can be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig file cannot be used.
    #[error("the kubeconfig {path} cannot be used: {source}")]
    Kubeconfig {
        /// The file's path.
        path: String,
        /// The reason.
        source: kube::config::KubeconfigError,
    },
    /// The process is not in a pod, or the pod's configuration cannot be used.
    #[error(
        "no API server: not in a pod ({0}); give --kubeconfig FILE, or --manifests DIR without --kube"
    )]
    InCluster(kube::config::InClusterError),
    /// The client cannot be set up: certificates, most likely.
    #[error("prepare the connection to the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// Whether this process runs in a pod.
#[must_use]
pub fn in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// Makes a client from `kubeconfig`, or from what the kubelet gives a pod. Does not connect yet.
///
/// # Errors
/// If no configuration exists, or it cannot be used.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    connect_counting(kubeconfig, &ApiCalls::default()).await
}

/// Makes a client as [`connect`], whose requests are counted.
///
/// # Errors
/// Those of [`connect`].
pub async fn connect_counting(
    kubeconfig: Option<&Path>,
    calls: &ApiCalls,
) -> Result<Client, Error> {
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
    let builder = ClientBuilder::try_from(config).map_err(|e| Error::Client(Box::new(e)))?;
    Ok(builder.with_layer(calls).build())
}
