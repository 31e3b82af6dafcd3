//! `patchlab host token`: tokens by which hosts enrol themselves.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use patchlab_check::written::Span;
use serde_json::json;

use super::{CliError, Client, Output, client::segment, enroll::TermsArguments};
use crate::{
    pipeline::{TokenMade, TokenRequest},
    store::{TokenRow, TokenState},
};

/// Tokens by which hosts enrol themselves.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for a host, and print it: one line, good once, for `patchlab-agent enroll` there
    Create(Box<Create>),
    /// List tokens, without their secrets
    List,
    /// Take a host's token back before it is used
    #[command(after_help = "Example: patchlab host token revoke web-1")]
    Revoke {
        /// The host's name
        name: String,
    },
}

const EXAMPLES: &str = "Examples:
  patchlab host token create web-1 --address 192.0.2.7:161 --site main
  patchlab host token create web-1 --address 192.0.2.7:161 --site main --valid 10min

The token alone goes to standard output, so that it can be piped into ssh root@192.0.2.7 patchlab-agent enroll. It names this server's
enrolment door (patchlab serve --enrolment) and the key that answers there. Who has it can enrol as that host, until somebody has: carry it
as you would a password.";

/// A token to make.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Create {
    /// The host's name: activations name it
    name: String,
    #[command(flatten)]
    terms: TermsArguments,
    /// How long it is good: 1 min to 30 days
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    valid: Span,
}

impl TokenCommand {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            Self::Create(create) => {
                let Create { name, terms, valid } = *create;
                let request = TokenRequest { host: name, terms: terms.into(), valid_s: valid.0.as_secs() };
                let made: TokenMade = client.post("tokens", &request).await?;
                output.line(&made.token);
                let until = output.moment(&made.not_after.to_string());
                output.note(format!("for {}, once, until {until}; there: patchlab-agent enroll", made.host));
                output.json(&made)
            }
            Self::List => {
                let tokens: Vec<TokenRow> = client.get("tokens").await?;
                let rows: Vec<_> = tokens.iter().map(|token| row(output, token, Timestamp::now())).collect();
                output.table(&["host", "token", "until", "made", "by", "key", "refused"], &rows);
                output.json(&tokens)
            }
            Self::Revoke { name } => {
                let () = client.post(&format!("tokens/{}/revocation", segment(&name)), &json!({})).await?;
                output.line(format!("{name}: its token counts no more"));
                output.json(&json!({ "host": name, "state": TokenState::Revoked }))
            }
        }
    }
}

fn row(output: &Output, token: &TokenRow, now: Timestamp) -> Vec<String> {
    let key = token.public_key.as_ref().map_or_else(|| "-".into(), |key| key.id().to_string());
    let refused: Vec<_> = token.refusals.iter().map(|(why, times)| format!("{why} x{times}")).collect();
    vec![
        token.host.clone(),
        standing(token, now).to_owned(),
        output.moment(&token.not_after.to_string()),
        output.moment(&token.made_at),
        token.made_by.clone(),
        key,
        if refused.is_empty() { "-".into() } else { refused.join(", ") },
    ]
}

/// Where a token is at a moment.
fn standing(token: &TokenRow, now: Timestamp) -> &'static str {
    match token.state {
        TokenState::Open if token.not_after < now => "expired",
        state => state.name(),
    }
}
