//! How a program ends: one number for scripts, one message for people.

use std::io::Write;
use std::process::ExitCode;

/// The exit codes of both programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Everything went as asked.
    Fine = 0,
    /// Something failed at run time: a port is taken, a file cannot be written, …
    Failed = 1,
    /// The command line or the configuration file is wrong; nothing was started.
    Usage = 2,
    /// The gateway refused this client: bad token, port not allowed, …
    Refused = 3,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// The end of a program, already worded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What scripts see.
    pub code: Code,
    /// What people see; may have several lines, and may be empty.
    pub message: String,
}

impl Exit {
    /// A good end, whose message goes to stdout.
    pub fn fine(message: impl Into<String>) -> Self {
        Self { code: Code::Fine, message: message.into() }
    }

    /// A failure at run time.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: Code::Failed, message: message.into() }
    }

    /// Bad usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: Code::Usage, message: message.into() }
    }

    /// A refusal by the gateway.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { code: Code::Refused, message: message.into() }
    }

    /// Prints the message (stdout when all is fine, else stderr with `program:` in front) and gives
    /// the code to return from `main`.
    #[must_use]
    pub fn print(&self, program: &str) -> ExitCode {
        let message = self.message.trim_end();
        // Nobody is left to tell when the output itself is gone.
        let _ = match (self.code, message) {
            (_, "") => Ok(()),
            (Code::Fine, text) => writeln!(std::io::stdout(), "{text}"),
            (_, text) => writeln!(std::io::stderr(), "{program}: {text}"),
        };
        self.code.into()
    }
}

impl From<clap::Error> for Exit {
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        if error.use_stderr() {
            Self::usage(text.strip_prefix("error: ").unwrap_or(&text))
        } else {
            Self::fine(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Help is a good end and a wrong flag is bad usage.
    #[test]
    fn clap_errors_become_exits() {
        let command = || clap::Command::new("x").version("1");
        let help = command().try_get_matches_from(["x", "--help"]).unwrap_err();
        assert_eq!(Exit::from(help).code, Code::Fine);
        let wrong = command().try_get_matches_from(["x", "--wrong"]).unwrap_err();
        let exit = Exit::from(wrong);
        assert_eq!(exit.code, Code::Usage);
        assert!(exit.message.starts_with("unexpected argument '--wrong'"), "{}", exit.message);
    }
}
