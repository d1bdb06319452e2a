//! All servers of a crowded node, in one thread: in user-mode Linux a thread for each connection takes longer than the
//! exchange itself.

use std::{net::SocketAddr, thread};

use anyhow::{Context as _, Result};
use ebbtide_vpc::traffic::Protocol;
use socket2::Socket;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
};

/// The servers. They answer as those of [`ebbtide_vpc::traffic`] do: every line and datagram with the peer's address.
/// Dropping them ends them.
#[derive(Debug)]
pub(super) struct Servers {
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Servers {
    /// Starts servers on bound sockets.
    ///
    /// # Errors
    /// If one cannot listen, or the runtime cannot be created.
    pub(super) fn start(sockets: Vec<(Protocol, Socket)>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("starting a runtime for servers")?;
        for (protocol, socket) in sockets {
            socket.set_nonblocking(true)?;
            let _entered = runtime.enter();
            match protocol {
                Protocol::Tcp => {
                    socket.listen(128).context("listening")?;
                    runtime.spawn(listen(TcpListener::from_std(socket.into())?));
                }
                Protocol::Udp => {
                    runtime.spawn(answer(UdpSocket::from_std(socket.into())?));
                }
            }
        }
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            // An error means that the sender was dropped, which is the end, too.
            let _ = runtime.block_on(ended);
        });
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(listener: TcpListener) {
    loop {
        // If a connection cannot be accepted, the client reports that it is missing.
        if let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(converse(stream, peer));
        }
    }
}

async fn converse(mut stream: TcpStream, peer: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(_)) = lines.next_line().await {
        if writer
            .write_all(format!("{peer}\n").as_bytes())
            .await
            .is_err()
        {
            break;
        }
    }
}

async fn answer(socket: UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // An error here is an ICMP error about an earlier answer.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(format!("{peer}\n").as_bytes(), peer).await;
        }
    }
}
