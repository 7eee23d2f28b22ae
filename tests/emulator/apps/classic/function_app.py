# The worker looks for this file and imports the package beside it. If it ran, this line would fail the app:
raise RuntimeError("the file function_app.py must not run when there is a package of that name")
