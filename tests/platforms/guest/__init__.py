"""What runs in a virtual machine: tests of the installed package, each of which returns one line.

python3 -m tests.platforms.guest     runs the tests named in the file "names"; prints JSON, one object a line
"""
