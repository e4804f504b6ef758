"""The one exception that the command line turns into a message."""


class CourseError(Exception):
    """Something a user can mend; the message says what and how."""
