//! `friday token`: makes a token for a machine.

use clap::Args;

use super::output::{Context, Format};
use crate::auth::{NewToken, Role, is_name};

/// Makes a token.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// Whose it is; the event log names the author of a command by it
    #[arg(value_parser = name)]
    name: String,
    /// What it may do
    #[arg(long, value_enum, value_name = "ROLE")]
    role: Role,
}

fn name(text: &str) -> Result<String, String> {
    is_name(text)
        .then(|| text.to_owned())
        .ok_or_else(|| "expected 1 to 64 letters, digits, dots, hyphens or underscores".to_owned())
}

/// Prints the token, and below it the line for the tokens file: two lines that a script can read.
pub(super) fn token(args: &TokenArgs, context: &Context) -> anyhow::Result<u8> {
    let new = NewToken::random(&args.name, args.role);
    context.show(&new, |new| format!("{}\n{}", new.token, new.line))?;
    if context.format == Format::Text {
        context.note(
            "The first line is the token: it is shown this once; keep it in a file for --token-file, or in FRIDAY_TOKEN.\n\
             The second goes into the file of `friday serve --tokens`, which reads it again by itself.",
        )?;
    }
    Ok(0)
}
