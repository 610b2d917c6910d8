"""One table of everything that can be refused: code, exit status, remedy.

Every error MedSynX raises on purpose is a :class:`MedsynxError` with a code of this table. A message names columns, files, counts and codes;
it never contains a patient's value, because refusals travel to the coordinator.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

#: code -> (exit status of the command line, remedy shown when the raiser has no better one)
CODES: dict[str, tuple[int, str]] = {
    # study manifest (10-19)
    "study-invalid": (10, "Correct the listed paths, then run `medsynx study check FILE` again."),
    "study-unreadable": (11, "Give a YAML or JSON file with one study manifest."),
    "plugin-unsound": (
        12,
        "Name another plugin, or a family of MedSynX; docs/synthcity.md shows what is wrong with this one.",
    ),
    # tables (20-29)
    "table-unreadable": (20, "Save the table as UTF-8 CSV or Parquet with one header line."),
    "table-empty": (21, "Give a table with at least one row."),
    "column-missing": (22, "Add the column to the table, or take it out of the study's dictionary."),
    "column-unknown": (23, "Drop the column, add it to the dictionary, or run without --strict."),
    "column-type": (24, "Correct the cells, or declare their spelling under `missing_values`."),
    "level-unknown": (25, "Add the level to the dictionary, or run without --strict (it then counts as `other`)."),
    "value-not-finite": (26, "Replace infinities by an empty cell or a value within the bounds."),
    "patients-too-few": (27, "Join with more patients, or ask the privacy officer to change `minimum_patients`."),
    "patient-duplicate": (
        28,
        "One row a patient is declared: merge the rows or raise `privacy.max_records_per_patient`.",
    ),
    "images-unreadable": (
        29,
        "Give an NPZ file with `images` (N x height x width), `labels` (N) and, where patients have several images, `patients` (N).",
    ),
    # door, policy, ledger (30-39)
    "study-not-approved": (30, "Let the site's privacy officer read the study and run `medsynx site approve STUDY`."),
    "policy-refused": (31, "The site's policy does not allow this study; see `configs/site.yaml`."),
    "budget-exceeded": (32, "Lower the study's epsilon, or ask the privacy officer for a larger lifetime budget."),
    "step-not-planned": (33, "The run asks for something the approved plan does not contain; report it to the site."),
    "step-replayed": (34, "A step of a run is answered once; start a new run."),
    "ledger-broken": (
        35,
        "Stop and ask why. Put the newest back-up of the file in its place, then run `medsynx site acknowledge`.",
    ),
    "cargo-malformed": (36, "The contribution does not have the planned size or bounds; report it to MedSynX."),
    "budget-impossible": (
        37,
        "No noise meets this epsilon and delta; raise epsilon or delta, or lower the number of steps.",
    ),
    "patients-shared": (
        38,
        "Take `apart` out of site.yaml: these data sets spend one budget. Or register files that share no patient.",
    ),
    "patients-lost": (
        39,
        "Put the newest back-up of patients.sqlite in its place, or take `apart` out of site.yaml: all data sets then spend one budget.",
    ),
    # federation (40-49)
    "quorum-lost": (40, "Bring the missing sites back online, or lower `rounds.quorum` in a new study."),
    "federation-unreachable": (41, "Check that the federation's services run and that the port is free."),
    "reply-invalid": (42, "A site's answer had the wrong shape or values and was left out; look at its log."),
    "site-failed": (43, "Look at the site's own log: its error is never sent."),
    "roster-mismatch": (
        44,
        "Bring every site's roster up to date, then let its privacy officer approve the study again.",
    ),
    "secure-sum-refused": (45, "The secure sum broke its rules; the site's own log says which. Start a new run."),
    "student-failed": (46, "Name another plugin, fewer rows or iterations, or give it more seconds."),
    # bundle and sampling (50-59)
    "bundle-unreadable": (50, "Give a bundle file written by MedSynX."),
    "bundle-signature": (51, "Do not use this bundle: fetch it again from its coordinator, or give the right --key."),
    "bundle-changed": (52, "Do not use this bundle: a file in it is not the one that was signed."),
    "bundle-not-private": (53, "Noise was off or seeded in this run; run the study again without test switches."),
    "rows-invalid": (54, "Ask for between 1 and 10,000,000 rows."),
    "condition-invalid": (55, "Name columns of the study, levels of the dictionary, or ranges that hold a whole bin."),
    "not-rows": (
        56,
        "This generator makes images: give `medsynx generate` an --out images.npz, or --format png (dicom, nifti) and an "
        "--out images.zip; the API has the formats npz, png, dicom and nifti.",
    ),
    "not-images": (57, "This generator makes rows: ask for CSV or Parquet."),
    # server (60-69)
    "server-not-initialised": (60, "Run `medsynx server init` first."),
    "server-exists": (61, "The server is already set up; delete its folder to start over."),
    "login-failed": (62, "Check the e-mail address and password."),
    "token-invalid": (63, "Sign in again."),
    "forbidden": (64, "Ask an administrator for the role this needs."),
    "not-found": (65, "Check the identifier."),
    "not-released": (66, "A coordinator must release the generator first."),
    "gate-closed": (67, "The evaluation does not meet the study's release gate; see the report."),
    "request-invalid": (68, "Correct the request as described."),
    "too-many-requests": (69, "Wait a minute."),
    # this machine (70-79)
    "install-incomplete": (70, "Install the extra this command needs, for example `pip install medsynx[demo]`."),
    "file-exists": (71, "Choose another path or remove the file."),
    "disk-full": (72, "Free some space and run the same command again: it goes on where it stopped."),
    "port-taken": (73, "Stop what has this port, or give another --host or --port."),
    # de-identification (80-99); 80 and 81 are verdicts, see `medsynx deid --help`
    "key-unusable": (
        82,
        "Give --key-file a file of at least 32 random bytes with mode 0600, or set MEDSYNX_KEY to 64 hex digits.",
    ),
    "key-changed": (83, "Use the key this data set was begun with, or another destination."),
    "recipe-invalid": (84, "Correct the listed lines; docs/deidentification.md describes the recipe."),
    "recipe-changed": (
        85,
        "Use the recipe this data set was begun with, or begin a new one: half of each would be neither.",
    ),
    "ingest-busy": (86, "Wait for the other run, or stop it."),
    "source-invalid": (87, "Give an existing source and a destination outside of it."),
    "report-invalid": (88, "Do not use this data set: ingest it again."),
    "dataset-unknown": (89, "Run `medsynx site datasets` for the names."),
    # answers a coordinator leaves out (100-104), and its own service (105-119)
    "reply-not-finite": (100, "A site's model holds numbers that are not finite and was left out; look at its log."),
    "reply-too-large": (
        101,
        "A site's answer is larger than clipping and noise can make it and was left out; ask the site what it runs.",
    ),
    "reply-replayed": (102, "A site's answer belongs to another request and was left out; ask the site what it runs."),
    "run-stopped": (105, "Start a new run; what the sites reserved for this one stays spent."),
    "run-exists": (
        106,
        "Choose another name; a run that died goes on by itself while `medsynx coordinator serve` runs.",
    ),
    "coordinator-failed": (107, "Look at the logs in the coordinator's folder."),
    "coordinator-down": (108, "Run `medsynx coordinator serve --dir DIR` and keep it running."),
    "coordinator-busy": (109, "Use the service that runs, or stop it first."),
    # joining (200-209)
    "invite-invalid": (200, "Check the token file, or ask the coordinator for a new token for this site's name."),
    "invite-expired": (201, "Ask the coordinator for a new token (`medsynx server invite create`)."),
    "invite-used": (
        202,
        "A token works once. If you did not use it, tell the coordinator at once (`medsynx server site revoke`); else ask for a new one.",
    ),
    "ca-invalid": (203, "Give the PEM file of the certificate authority that signed the server's certificate."),
    "site-taken": (204, "Ask the coordinator: `medsynx server site rotate` lets an enrolled site enrol anew."),
    "identity-taken": (205, "Two sites cannot share one identity: move `identity.pem` away and enrol again."),
    "site-unknown": (206, "`medsynx server site list` shows the sites; a revoked one needs a new invitation."),
    "proof-invalid": (207, "Run the command again on the site itself, with its own keys and a right clock."),
    "not-enrolled": (208, "Ask the coordinator for a token, then run `medsynx site enrol`."),
    "coordinator-unset": (209, "Run `medsynx server federation --url https://HOST:PORT --ca FILE` first."),
    # what `medsynx site preflight` finds (210-219)
    "key-exposed": (
        210,
        "Run `chmod 600` on the file as its owner. If others may have read it: `medsynx site rotate` renews identity.pem and node.key.",
    ),
    "disk-low": (211, "Free some space in the site's folder, or move it."),
    "proxy-unusable": (212, "Correct HTTPS_PROXY, or add the coordinator's host to NO_PROXY."),
    "dns-failed": (213, "Check the host's name in the URL and this machine's name servers."),
    "port-closed": (214, "Ask network operations to let this machine out to that host and port (TCP, outbound only)."),
    "ca-mismatch": (
        215,
        "Do not go on. Compare the fingerprint with the coordinator by telephone; if a proxy inspects TLS, have this host excepted.",
    ),
    "clock-skewed": (216, "Set the clock by NTP (`timedatectl set-ntp true`): requests are signed with the time."),
    "version-differs": (217, "Install the coordinator's release of MedSynX on this machine."),
    "server-unwell": (218, "Tell the coordinator: its server answers, but not as it should."),
    "agent-down": (220, "Look at `medsynx site run`: is it running, and what do the logs in the site's folder say?"),
    "already-running": (219, "This site's agent runs already on this machine; stop that one first."),
}


class MedsynxError(Exception):
    """A refusal with a code, a sentence and a remedy.

    Args:
        code: a key of :data:`CODES`.
        message: one sentence; never a patient's value.
        hint: a remedy for this case; the table's when omitted.
        details: further lines, for example every wrong path of a manifest.
    """

    def __init__(self, code: str, message: str, *, hint: str | None = None, details: Sequence[str] = ()) -> None:
        self.exit_status, default_hint = CODES[code]
        self.code, self.message, self.hint, self.details = code, message, hint or default_hint, tuple(details)
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:  # an error of a worker process is raised again in its parent
        return partial(MedsynxError, self.code, self.message, hint=self.hint, details=self.details), ()

    def __str__(self) -> str:
        return "\n".join([f"{self.message} [{self.code}]", *(f"  {line}" for line in self.details)])
