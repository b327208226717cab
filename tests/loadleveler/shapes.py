"""Shapes of 29 real job command files, in our own words: the features only.

Where each was met is said in its name; see README.md for how they were collected. A shape is its
text and what `llq -l` must show of it, by label.
"""

SHAPES = {
    "weather service, serial with threads, one file for both outputs": (
        """#!/bin/ksh
# @ job_name = surface
# @ output = surface.$(jobid).log
# @ error = surface.$(jobid).log
# @ job_type = serial
# @ class = general
# @ parallel_threads = 8
# @ task_affinity = core(1)
# @ node_resources = ConsumableMemory(2 GB)
# @ wall_clock_limit = 00:20:00
# @ queue
""",
        {"Out": "surface.7.log", "Err": "surface.7.log", "Step Type": "Serial"},
    ),
    "NeSI, MPICH tasks wherever there is room": (
        """#!/bin/bash
# @ job_type = MPICH
# @ total_tasks = 6
# @ blocking = unlimited
# @ resources = ConsumableVirtualMemory(1200mb) ConsumableMemory(600mb)
# @ requirements = (Feature=="sandybridge")
# @ wall_clock_limit = 0:10:00
# @ queue
""",
        {"Step Type": "General Parallel", "Requirements": '(Feature=="sandybridge")'},
    ),
    "weather service, parallel with a network and no restart": (
        """#!/bin/ksh --login
#@ error=gsi.err
#@ output=gsi.out
#@ job_type=parallel
#@ network.MPI=sn_all,shared,us
#@ node=2
#@ tasks_per_node=2
#@ node_resources=ConsumableMemory(110 GB)
#@ restart=no
#@ class=general
#@ wall_clock_limit=00:15:00
#@ queue
""",
        {"Restart": "no", "Adapter Requirement": "(sn_all,shared,us)", "Node minimum": "2"},
    ),
    "climate model with affinity, the error file named by the output file": (
        """#! /usr/bin/ksh
# @ shell = /usr/bin/ksh
# @ output = echam.$(jobid)
# @ error = $(output)
# @ rset = rset_mcm_affinity
# @ mcm_affinity_options = mcm_accumulate
# @ job_type = parallel
# @ node = 1
# @ tasks_per_node = 4
# @ wall_clock_limit = 01:00:00
# @ queue
""",
        {"Err": "echam.7", "RSet": "rset_mcm_affinity", "Shell": "/usr/bin/ksh"},
    ),
    "large memory on a named machine": (
        """#!/bin/sh
# @ requirements = (Machine == "n01")
# @ resources = ConsumableMemory(60gb)
# @ wall_clock_limit = 12:00:00
# @ queue
""",
        {"Requirements": '(Machine == "n01")', "Resources": "ConsumableMemory(60gb)"},
    ),
    "outputs named by the step": (
        """#!/bin/sh
# @ step_name = first
# @ output = $(step_name).out
# @ error = $(step_name).err
# @ resources = ConsumableCpus(1) ConsumableMemory(1000mb)
# @ wall_clock_limit = 1:00
# @ queue
""",
        {"Step Name": "first", "Out": "first.out", "Err": "first.err", "Step Cpus": "1"},
    ),
    "workflow manager with a keyword without value": (
        """#!/bin/ksh
#@ shell = /usr/bin/ksh
#@ class = ns
#@ platforms
# @
#@ job_type = serial
#@ resources = ConsumableMemory(1200mb)
#@ wall_clock_limit = 00:30:00
#@ queue
""",
        {"Class": "ns", "Step Real Memory": "1200.000 mb"},
    ),
    "csh and megabytes with a capital": (
        """#!/bin/csh
#@ shell = /bin/csh
#@ resources = ConsumableMemory(500Mb) ConsumableCpus(1)
#@ wall_clock_limit = 2:00:00
#@ queue
""",
        {"Shell": "/bin/csh", "Step Real Memory": "500.000 mb"},
    ),
    "ocean model that may be restarted": (
        """#!/bin/csh
#@ restart = yes
#@ node_usage = shared
#@ job_type = serial
#@ job_name = ocean
#@ wall_clock_limit = 3600
#@ queue
""",
        {
            "Restart": "yes",
            "Node Usage": "shared",
            "Wall Clk Hard Limit": "01:00:00 (3600 seconds)",
        },
    ),
    "ZIH Triton, a group and someone to notify": (
        """#!/bin/bash
#@ group = mygroup
#@ notify_user = somebody@example.org
#@ notification = complete
#@ resources = ConsumableMemory(1 gb)
#@ class = short
#@ wall_clock_limit = 00:30:00
#@ queue
""",
        {"LoadLeveler Group": "mygroup", "Notify User": "somebody@example.org"},
    ),
    "forecast with hundreds of hours of processor time": (
        """#!/bin/sh
#@ cpu_limit = 200:00:00
#@ wall_clock_limit = 200:00:00
#@ class = forecast
#@ job_type = parallel
#@ node = 4
#@ tasks_per_node = 2
#@ queue
""",
        {"Step Cpu Hard Limit": "200:00:00", "Wall Clk Hard Limit": "200:00:00 (720000 seconds)"},
    ),
    "plasma code on whole machines": (
        """#!/bin/ksh
# @ node_usage= not_shared
# @ node =1
# @ job_type=parallel
# @ tasks_per_node = 20
# @ resources = ConsumableCpus(1)
# @ wall_clock_limit = 24:00:00
# @ queue
""",
        {"Node Usage": "not_shared", "Node maximum": "1"},
    ),
    "accelerators, mail to the user by variable": (
        """#!/bin/bash
# @ requirements = (Feature=="mic")
# @ notify_user = $(user)@example.org
# @ wall_clock_limit = 10:00
# @ queue
""",
        {"Requirements": '(Feature=="mic")'},
    ),
    "SuperMUC, serial on a shared machine at home": (
        """#!/bin/bash
#@ group = pr00
#@ job_type = serial
#@ class = serial
#@ node_usage = shared
#@ resources = ConsumableCpus(1)
#@ initialdir = $(home)
#@ wall_clock_limit = 01:20:30
#@ queue
""",
        {"Wall Clk Hard Limit": "01:20:30 (4830 seconds)", "Class": "serial"},
    ),
    "serial with five gigabytes": (
        """#!/bin/bash
#@ job_type = serial
#@ node_usage = shared
#@ resources = ConsumableCpus(1) ConsumableMemory(5 gb)
#@ wall_clock_limit = 1:00:00
#@ queue
""",
        {"Step Real Memory": "5120.000 mb"},
    ),
    "old synonyms for the parts of the id": (
        """#!/bin/sh
# @ resources = ConsumableCpus(4) ConsumableMemory(16gb)
# @ output = $(Host).$(Cluster).$(Process).out
# @ wall_clock_limit = 12000
# @ queue
""",
        {"Out": "submit1.7.0.out", "Wall Clk Hard Limit": "03:20:00 (12000 seconds)"},
    ),
    "a program with arguments and input": (
        """# @ executable = /bin/cat
# @ arguments = -n -
# @ input = /dev/null
# @ checkpoint = no
# @ requirements = (Arch == "R6000") && (OpSys == "AIX51")
# @ wall_clock_limit = 60
# @ queue
""",
        {"Executable": "/bin/cat", "Exec Args": "-n -", "Checkpointable": "no"},
    ),
    "steps in a chain": (
        """#!/bin/sh
# @ step_name = driver
# @ wall_clock_limit = 00:05:00
# @ queue
# @ step_name = post
# @ dependency = (driver == 0)
# @ queue
""",
        {"Step Name": "driver", "Dependency": ""},
    ),
    "eight processors a task, a limit of addresses": (
        """#!/bin/bash
# @ job_type = mpich
# @ node = 2
# @ tasks_per_node = 1
# @ as_limit = 6.0gb
# @ resources = ConsumableCpus(8)
# @ wall_clock_limit = 2:00:00
# @ queue
""",
        {"Step Cpus": "8", "Node minimum": "2"},
    ),
    "SciNet, an environment on two lines, a job that is not a directive": (
        """#!/bin/bash
## @ job_name = ignored
# #@ class = ignored
##@ notification = ignored
# notification = never
# @ job_name = wrf-2100_ctrl
# @ environment = MEMORY_AFFINITY=MCM; \\
#   MP_SYNC_QP=YES; MP_SHARED_MEMORY=yes
# @ core_limit = 0
# @ network.mpi = sn_all,,us
# @ job_type = parallel
# @ node = 2
# @ tasks_per_node = 2
# @ wall_clock_limit = 00:20:00
# @ queue
""",
        {
            "Job Name": "wrf-2100_ctrl",
            "Core Hard Limit": "0",
            "Env": "MEMORY_AFFINITY=MCM; MP_SYNC_QP=YES; MP_SHARED_MEMORY=yes",
        },
    ),
    "fluid dynamics, hard and soft limit": (
        """#!/bin/sh
# @ job_type = bluegene
# @ bg_size = 128
# @ wall_clock_limit = 00:25:00, 00:20:00
# @ queue
""",
        {
            "Wall Clk Hard Limit": "00:25:00 (1500 seconds)",
            "Wall Clk Soft Limit": "00:20:00 (1200 seconds)",
        },
    ),
    "JUGENE, a comment in quotes": (
        """# @ job_name = bgp
# @ comment = "a comment"
# @ job_type = bluegene
# @ bg_size = 32
# @ bg_connection = TORUS
# @ error = $(job_name).$(jobid).err
# @ wall_clock_limit = 00:30:00
# @ queue
""",
        {"Comment": "a comment", "Err": "bgp.7.err"},
    ),
    "Hartree, a starter as program": (
        """# @ executable = /bin/echo
# @ arguments = --np 16 : program
# @ job_type = bluegene
# @ bg_size = 64
# @ wall_clock_limit = 30:00
# @ queue
""",
        {"Exec Args": "--np 16 : program", "Executable": "/bin/echo"},
    ),
    "CMA, equal limits": (
        """#!/bin/ksh
#@ class = normal
#@ job_type = parallel
#@ node = 1,2
#@ tasks_per_node = 2
#@ wall_clock_limit = 02:00:00, 02:00:00
#@ queue
""",
        {"Class": "normal", "Node minimum": "1", "Node maximum": "2"},
    ),
    "CMA, Python": (
        """#!/bin/env python
# @ account_no = 123-45
# @ class = serial
# @ wall_clock_limit = 00:10:00
# @ queue
print("hello")
""",
        {"Account": "123-45"},
    ),
    "CESCA, processors instead of machines": (
        """#!/bin/sh
# @ job_type = parallel
# @ min_processors = 2
# @ max_processors = 4
# @ wall_clock_limit = 1:00:00
# @ queue
""",
        {"Node minimum": "2", "Node maximum": "4"},
    ),
    "PIK, memory without a unit": (
        """#!/bin/sh
# @ resources = ConsumableMemory(3200)
# @ class = clallmds+
# @ wall_clock_limit = 1:00:00
# @ queue
""",
        {"Class": "clallmds+", "Step Real Memory": "3200.000 mb"},
    ),
    "KIT, a closed environment and two requirements": (
        """#!/bin/sh
# @ environment = COPY_ALL;TMPDIR=/tmp
# @ requirements = (Arch == "AMD64") && (Feature == "ib")
# @ wall_clock_limit = 1:00:00
# @ queue
""",
        {"Env": "COPY_ALL;TMPDIR=/tmp", "Requirements": '(Arch == "AMD64") && (Feature == "ib")'},
    ),
    "pySPACE": (
        """# @ job_type = serial
# @ notification = never
# @ class = general
# @ resources = ConsumableMemory(3250mb) ConsumableCPUs(1)
# @ requirements = (Machine == "anode01") || (Machine == "anode02")
# @ executable = /bin/sh
# @ arguments = runner.py 1 2
# @ output = log/$(jobid).out
# @ error = log/$(jobid).err
# @ queue
""",
        {
            "Notifications": "Never",
            "Out": "log/7.out",
            "Step Real Memory": "3250.000 mb",
            "Wall Clk Hard Limit": "24:00:00 (86400 seconds)",
            "Job Name": "submit1.example.org.7",
        },
    ),
}
