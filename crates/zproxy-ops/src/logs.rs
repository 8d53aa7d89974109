//! Log lines: text or JSON, to stderr or to daily files.
//!
//! Lines go through a bounded queue to a thread of their own. When the queue is full, lines are
//! dropped and counted: a data core never waits for a disk or a terminal. Nor does it wake that thread
//! for each line: see `Gathering`.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::lines::Lines;
use crate::{Exit, state};

/// Lines that may wait for the writing thread; further ones are dropped and counted.
pub const LINES_WAITING_MAX: usize = 16 << 10;

/// How long the writing thread rests after it has written everything. A line is seen that much later
/// at most.
const REST: Duration = Duration::from_millis(20);

/// Daily files that are kept; the oldest is deleted for the next one.
pub const LOG_FILES_MAX: usize = 30;

/// The form of log lines (`--log-format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("write text or json".to_owned()),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// How much is logged (`--log-level`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(pub LevelFilter);

impl Default for Level {
    fn default() -> Self {
        Self(LevelFilter::INFO)
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "off" => Ok(Self(LevelFilter::OFF)),
            "error" => Ok(Self(LevelFilter::ERROR)),
            "warn" => Ok(Self(LevelFilter::WARN)),
            "info" => Ok(Self(LevelFilter::INFO)),
            "debug" => Ok(Self(LevelFilter::DEBUG)),
            "trace" => Ok(Self(LevelFilter::TRACE)),
            _ => Err("write error, warn, info, debug, trace or off".to_owned()),
        }
    }
}

crate::values::text_value!(LogFormat, Level);

/// Where log lines go and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The form of lines.
    pub format: LogFormat,
    /// The directory for daily files, or [`STDOUT`]; none: stderr.
    pub dir: Option<PathBuf>,
    /// How much is logged.
    pub level: Level,
}

/// What the writing thread writes to. Everything that waits goes in one call. Then the thread rests:
/// somebody who waits on an empty queue has to be woken by whoever brings the next line, and a wake
/// costs a data core more than the line. (The thread flushes whenever the queue is empty.)
#[derive(Debug)]
struct Gathering<W: Write>(BufWriter<W>);

impl<W: Write> Gathering<W> {
    fn new(to: W) -> Self {
        Self(BufWriter::with_capacity(64 << 10, to))
    }
}

impl<W: Write> Write for Gathering<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.0.flush();
        std::thread::sleep(REST);
        result
    }
}

/// Keeps the writing thread; when it is dropped, waiting lines are written first.
#[derive(Debug)]
#[must_use = "log lines stop when the guard is dropped"]
pub struct LogGuard {
    dropped: ErrorCounter,
    _worker: WorkerGuard,
}

impl LogGuard {
    /// Lines dropped so far because the queue was full.
    #[must_use]
    pub fn lines_dropped(&self) -> usize {
        self.dropped.dropped_lines()
    }
}

/// Starts logging for the whole process. `program` begins the names of the files.
///
/// # Errors
/// When the directory cannot be written, or logging was started before.
pub fn start(settings: &LogSettings, program: &str) -> Result<LogGuard, Exit> {
    let (writer, worker) = open(settings, program)?;
    let guard = LogGuard { dropped: writer.error_counter(), _worker: worker };
    let has_colours = settings.dir.is_none() && io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_max_level(settings.level.0)
        .with_target(false)
        .with_ansi(has_colours)
        .with_writer(BoxMakeWriter::new(writer));
    let started = match settings.format {
        LogFormat::Text if has_colours => lines.try_init(),
        LogFormat::Text => lines.event_format(Lines).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Exit::failed(format!("logging cannot start: {error}")))?;
    Ok(guard)
}

/// The name that means stdout in place of a directory.
pub const STDOUT: &str = "-";

fn open(settings: &LogSettings, program: &str) -> Result<(NonBlocking, WorkerGuard), Exit> {
    let queue = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_WAITING_MAX)
        .thread_name("log");
    let Some(dir) = &settings.dir else { return Ok(queue.finish(Gathering::new(io::stderr()))) };
    if dir.as_os_str() == STDOUT {
        return Ok(queue.finish(Gathering::new(io::stdout())));
    }
    let failed = |error: &dyn fmt::Display| {
        Exit::failed(format!("--log-dir: {} cannot be written: {error}", dir.display()))
    };
    state::ensure_dir(dir).map_err(|error| failed(&error))?;
    let files = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(program)
        .filename_suffix("log")
        .max_log_files(LOG_FILES_MAX)
        .build(dir)
        .map_err(|error| failed(&error))?;
    Ok(queue.finish(Gathering::new(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// JSON lines arrive in the day's file when the guard goes, and nothing below the level does.
    #[test]
    fn lines_reach_the_file() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("logs");
        let settings = LogSettings {
            format: LogFormat::Json,
            dir: Some(dir.clone()),
            level: Level::default(),
        };
        let guard = start(&settings, "zproxyd").unwrap();
        tracing::info!(flow = 7, "it ended");
        tracing::debug!("not this");
        assert_eq!(guard.lines_dropped(), 0);
        assert_eq!(start(&settings, "zproxyd").unwrap_err().code, crate::Code::Failed);
        drop(guard);
        let mut text = String::new();
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(name.starts_with("zproxyd.") && name.ends_with(".log"), "{name}");
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&line["flow"], &line["message"]), (&7.into(), &"it ended".into()));
    }

    /// A directory that cannot be made is a failure that names it.
    #[test]
    fn unwritable_directories_are_named() {
        let top = tempfile::NamedTempFile::new().unwrap();
        let dir = Some(top.path().join("logs"));
        let settings = LogSettings { format: LogFormat::Text, dir, level: Level::default() };
        let exit = start(&settings, "zproxyd").unwrap_err();
        assert!(exit.message.contains("--log-dir"), "{}", exit.message);
    }

    /// Levels and formats are read, and what is neither is refused.
    #[test]
    fn levels_and_formats_parse() {
        assert_eq!("WARN".parse(), Ok(Level(LevelFilter::WARN)));
        assert!("loud".parse::<Level>().is_err());
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
