//! A cloud's metadata service: read whole, or not at all.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    Client, Endpoint, Provider, Reading, alibaba, aws, azure, gcp,
    reading::ReadError,
    session::{Credential, Session},
    tencent,
};

/// The longest time for a whole read. A NIC of AWS takes seven requests of some milliseconds.
const WHOLE: Duration = Duration::from_secs(30);

/// A cloud's metadata service.
///
/// # Examples
///
/// ```no_run
/// use ebbtide_cloud::{Provider, Service};
///
/// # async fn example() -> Result<(), ebbtide_cloud::ReadError> {
/// let mut service = Service::new(Provider::Aws, None);
/// for nic in service.read().await?.view.nics {
///     println!("{} has {:?}", nic.mac, nic.blocks);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Service {
    provider: Provider,
    client: Client,
    credential: Option<Credential>,
}

impl Service {
    /// Returns the service of a cloud, at an endpoint or where that cloud has it. Nothing is sent yet.
    #[must_use]
    pub fn new(provider: Provider, endpoint: Option<Endpoint>) -> Self {
        let endpoint = endpoint.unwrap_or_else(|| provider.endpoint());
        Self::with_client(provider, Client::new(endpoint))
    }

    pub(crate) const fn with_client(provider: Provider, client: Client) -> Self {
        Self {
            provider,
            client,
            credential: None,
        }
    }

    /// Returns its cloud.
    #[must_use]
    pub const fn provider(&self) -> Provider {
        self.provider
    }

    /// Returns where it is.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        self.client.endpoint()
    }

    /// Whether [`Service::follow`] waits for a change.
    #[must_use]
    pub const fn can_follow(&self) -> bool {
        matches!(self.provider, Provider::Gcp)
    }

    /// Reads all NICs.
    ///
    /// # Errors
    /// If anything cannot be read or understood. An error is no news: what was known before remains known.
    pub async fn read(&mut self) -> Result<Reading, ReadError> {
        let mut session = Session::new(self.provider, &self.client, &mut self.credential);
        let read = async {
            match self.provider {
                Provider::Aws => aws::read(&mut session).await,
                Provider::Alibaba => alibaba::read(&mut session).await,
                Provider::Tencent => tencent::read(&mut session).await,
                Provider::Azure => azure::read(&self.client).await,
                Provider::Gcp => gcp::read(&self.client).await,
            }
        };
        let read = timeout(WHOLE, read).await;
        read.unwrap_or(Err(ReadError::TooSlow(WHOLE)))
    }

    /// Waits until the NICs are no longer those of an answer with this [`etag`](Reading::etag), for a minute at most,
    /// and returns them; without one, at once. Dropping the future ends the wait. A cloud that does not
    /// [follow](Self::can_follow) is read at once: the caller must pause.
    ///
    /// # Errors
    /// As [`Service::read`].
    pub async fn follow(&mut self, etag: Option<&str>) -> Result<Reading, ReadError> {
        match self.can_follow() {
            true => gcp::follow(&self.client, etag).await,
            false => self.read().await,
        }
    }
}

#[cfg(test)]
mod tests;
