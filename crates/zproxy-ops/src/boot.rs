//! From settings to running threads: which driver, and a pinned thread per data core.

use std::io;
use std::thread::JoinHandle;

use tracing::warn;
use zproxy_io::{DriverConfig, Epoll, Open, RelayMode, Uring, sys};

use crate::Exit;
use crate::values::Backend;

/// The driver that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

/// Chooses the driver for so many threads by trying it. With [`Backend::Auto`], one log line says
/// why the ring is not used and what to change.
///
/// # Errors
/// When the driver that was asked for cannot be had.
pub fn choose(backend: Backend, relay: RelayMode, threads: usize) -> Result<Chosen, Exit> {
    let config = DriverConfig { relay, ..DriverConfig::default() };
    // All at once: the memory may do for one ring and not for every thread's.
    let open_rings = || -> io::Result<()> {
        (0..threads).map(|_| Uring::open(&config)).collect::<io::Result<Vec<_>>>().map(drop)
    };
    match backend {
        Backend::Epoll => Ok(Chosen::Epoll),
        Backend::Uring => open_rings().map(|()| Chosen::Uring).map_err(|why| {
            Exit::failed(format!("--backend uring: {why} (or use --backend epoll)"))
        }),
        Backend::Auto => match open_rings() {
            Ok(()) => Ok(Chosen::Uring),
            Err(why) => {
                warn!("backend=epoll, not uring: {why}");
                Epoll::open(&config)
                    .map(|_| Chosen::Epoll)
                    .map_err(|why| Exit::failed(format!("neither io_uring nor epoll: {why}")))
            }
        },
    }
}

/// Raises the descriptor limit as far as it goes and ignores SIGPIPE.
pub fn prepare_process() {
    sys::raise_descriptor_limit();
    sys::ignore_sigpipe();
}

/// Starts a named thread, pinned to the CPU of `config`, whose driver is made on it. `start` gets
/// the driver before `spawn` returns (to make a mailbox of its doorbell) and says what to run with;
/// `run` then runs to the end of the thread.
///
/// # Errors
/// When the thread or its driver cannot be made.
pub fn spawn<D, S, R>(
    name: String,
    config: DriverConfig,
    start: impl FnOnce(&D) -> (S, R) + Send + 'static,
    run: impl FnOnce(D, S) + Send + 'static,
) -> Result<(R, JoinHandle<()>), Exit>
where
    D: Open,
    S: 'static,
    R: Send + 'static,
{
    let (tell, told) = std::sync::mpsc::channel();
    let title = name.clone();
    let body = move || {
        if let Some(cpu) = config.cpu
            && let Err(error) = sys::pin_to_cpu(cpu)
        {
            warn!("thread={title} cpu={cpu} not pinned: {error}");
        }
        match D::open(&config) {
            Ok(driver) => {
                let (seed, report) = start(&driver);
                if tell.send(Ok(report)).is_ok() {
                    run(driver, seed);
                }
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    };
    let thread = std::thread::Builder::new()
        .name(name.clone())
        .spawn(body)
        .map_err(|error| Exit::failed(format!("cannot start the thread {name}: {error}")))?;
    match told.recv() {
        Ok(Ok(report)) => Ok((report, thread)),
        Ok(Err(error)) => Err(Exit::failed(format!("{name}: {error}"))),
        Err(_) => Err(Exit::failed(format!("the thread {name} died at its start"))),
    }
}
