"""The sentences of the commands.

Those of success were seen in transcripts of real sites. No source was found for any text with a
number 2512-nnn: NUMBERED are unverified recollections, and nobody should rely on them.
"""

SUBMITTED = 'llsubmit: The job "{job}" has been submitted.'
SUBMITTED_STEPS = 'llsubmit: The job "{job}" with {steps} job steps has been submitted.'
FILTERED = 'llsubmit: Processed command file through Submit Filter: "{path}".'
FROM_STDIN = 'llsubmit: Stdin job command file written to "{path}".'
CANCEL_SENT = "llcancel: Cancel command has been sent to the central manager."
NO_STATUS = "llq: There is currently no job status to report."

NUMBERED = {
    "not submitted": "llsubmit: 2512-051 This job has not been submitted to LoadLeveler.",
    "no central manager": (
        "{command}: 2512-301 An error occurred while receiving data from the"
        " LoadL_negotiator daemon on host {host}."
    ),
    "unknown step": "{command}: 2512-045 The step {step} is not known.",
    "usage": "{command}: 2512-002 The option {option} is not recognised.",
    "refused": "llsubmit: 2512-135 {why}",
}
