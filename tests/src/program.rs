//! One program as a process: started, listened to, signalled and always cleaned up.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::clock::eventually_some;

/// Lines shown of each stream when a test fails.
const SHOWN_LINES_MAX: usize = 1_000;

/// What a program has said on one of its streams, line by line.
#[derive(Debug, Default)]
pub struct Transcript {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    said: Vec<String>,
    ended: bool,
}

impl Transcript {
    fn follow(stream: impl Read + Send + 'static) -> Arc<Self> {
        let transcript = Arc::new(Self::default());
        let writer = Arc::clone(&transcript);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                writer.lock().said.push(line);
                writer.grown.notify_all();
            }
            writer.lock().ended = true;
            writer.grown.notify_all();
        });
        transcript
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the first line that matches.
    ///
    /// # Panics
    /// When no line does in time, or the program ends without saying it.
    pub fn wait_for(&self, what: &str, within: Duration, matches: impl Fn(&str) -> bool) -> String {
        self.wait_for_count(what, 1, within, matches).remove(0)
    }

    /// Waits until at least `count` lines match, and hands out all that do.
    ///
    /// # Panics
    /// When too few lines do in time, or the program ends without saying them.
    pub fn wait_for_count(
        &self,
        what: &str,
        count: usize,
        within: Duration,
        matches: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let until = Instant::now() + within;
        let mut lines = self.lock();
        loop {
            let found: Vec<String> =
                lines.said.iter().filter(|line| matches(line)).cloned().collect();
            if found.len() >= count {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            let (ended, said) = (lines.ended, lines.said.len());
            assert!(!ended, "the program ended without saying: {what} ({said} lines)");
            assert!(!left.is_zero(), "not said within {within:?}: {what} ({said} lines)");
            lines = self.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The lines so far that match.
    pub fn matching(&self, matches: impl Fn(&str) -> bool) -> Vec<String> {
        self.lock().said.iter().filter(|line| matches(line)).cloned().collect()
    }

    /// Forgets the lines so far that match.
    pub fn forget(&self, matches: impl Fn(&str) -> bool) {
        self.lock().said.retain(|line| !matches(line));
    }

    /// Everything said so far. After the program has ended: everything it ever said.
    #[must_use]
    pub fn text(&self) -> String {
        self.lock().said.join("\n")
    }

    /// The number of lines so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().said.len()
    }

    /// True when nothing was said so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wait_for_end(&self, within: Duration) {
        let until = Instant::now() + within;
        let mut lines = self.lock();
        while !lines.ended && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            lines = self.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn show(&self, title: &str) {
        let lines = self.lock();
        let skipped = lines.said.len().saturating_sub(SHOWN_LINES_MAX);
        eprintln!("--- {title} ({} lines, {skipped} not shown)", lines.said.len());
        for line in &lines.said[skipped..] {
            eprintln!("{line}");
        }
    }
}

/// A running program. Dropping it kills it; if the test has failed by then, what it said is shown.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    exit: Option<i32>,
    /// What it says on stdout.
    pub out: Arc<Transcript>,
    /// What it says on stderr, which is where logs go.
    pub err: Arc<Transcript>,
}

impl Program {
    /// Starts an executable. `descriptors_max` becomes the limit of its descriptors.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(
        name: &str,
        exe: &Path,
        args: &[OsString],
        env: &[(&str, &str)],
        descriptors_max: Option<u32>,
    ) -> Self {
        let mut command = match descriptors_max {
            None => Command::new(exe),
            Some(max) => {
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(format!("ulimit -n {max} && exec \"$0\" \"$@\"")).arg(exe);
                shell
            }
        };
        let mut child = command
            .args(args)
            .env_remove("ZPROXY_TOKEN")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|why| panic!("starting {}: {why}", exe.display()));
        let out = Transcript::follow(child.stdout.take().expect("piped"));
        let err = Transcript::follow(child.stderr.take().expect("piped"));
        Self { name: name.to_owned(), child, exit: None, out, err }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, if the process still lives.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) {
        if self.try_exit().is_none() {
            let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a real pid");
            kill_process(pid, signal).expect("signalling a child of our own");
        }
    }

    /// Asks the program to stop.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Kills the program and waits until it is gone.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.wait_exit(Duration::from_secs(10));
    }

    /// Closes the program's standard input.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// The exit code if it has ended: that of the program, or minus the signal that killed it.
    pub fn try_exit(&mut self) -> Option<i32> {
        if self.exit.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.exit = status.code().or_else(|| status.signal().map(|signal| -signal));
        }
        self.exit
    }

    /// Waits for the end of the program and of what it says, and gives the exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn wait_exit(&mut self, within: Duration) -> i32 {
        let what = format!("the end of {}", self.name);
        let code = eventually_some(&what, within, || self.try_exit());
        self.out.wait_for_end(Duration::from_secs(2));
        self.err.wait_for_end(Duration::from_secs(2));
        code
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let before = self.try_exit();
        if before.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let state = before.map_or("running".to_owned(), |code| format!("exit {code}"));
            self.out.show(&format!("{} stdout, {state}", self.name));
            self.err.show(&format!("{} stderr", self.name));
        }
    }
}
